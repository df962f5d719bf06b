"""A question that a passage answers, after two examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from workflows.synthesis.reading import line
from workflows.synthesis.recipes.config import QueriesSettings
from workflows.synthesis.script import Script
from workflows.synthesis.writing import Outcome, Writing


class Queries:
    steps: ClassVar[Mapping[str, Sequence[str]]] = {"query": ("title?", "passage")}

    def __init__(self, _settings: QueriesSettings) -> None:
        pass

    def write(self, writing: Writing) -> Script[list[Outcome]]:
        passage = writing.unit.passage
        assert passage is not None
        query = yield from writing.ask("query", writing.shown(passage), line, entire=True)
        return [writing.written(0, query, [passage], recipe="queries")]
