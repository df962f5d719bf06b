"""Who asks and how is chosen for a passage, then the query is written in that manner (Zhang et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from workflows.synthesis.reading import record
from workflows.synthesis.recipes.config import Qwen3Settings
from workflows.synthesis.script import Script
from workflows.synthesis.writing import Outcome, Writing

OFFERED = 5
"""Personas that the model chooses from."""


class Qwen3:
    steps: ClassVar[Mapping[str, Sequence[str]]] = {
        "setting": ("title", "passage", "personas", "language"),
        "query": ("title", "passage", "persona", "type", "difficulty", "language"),
    }

    def __init__(self, settings: Qwen3Settings) -> None:
        self._settings = settings

    def write(self, writing: Writing) -> Script[list[Outcome]]:
        passage, rng = writing.unit.passage, writing.rng
        assert passage is not None
        language = rng.choice(self._settings.languages)
        known = writing.template.choices.get("persona", [])
        personas = "\n".join(f"- {persona}" for persona in rng.sample(known, min(OFFERED, len(known))))
        values = {**writing.shown(passage), "personas": personas, "language": language}
        setting = yield from writing.ask("setting", values, record("persona", "type", "difficulty"))
        made = yield from writing.ask("query", {**values, **setting}, record("instruction", "query"))
        return [
            writing.written(
                0,
                made["query"],
                [passage],
                instruction=made["instruction"],
                recipe="qwen3",
                made={"language": language, **setting},
            )
        ]
