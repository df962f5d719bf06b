"""The writer judges whether a passage answers what was asked about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sleuth.artifacts import fingerprint_of
from workflows.synthesis.filters.base import Bench
from workflows.synthesis.filters.config import AnswerableSettings
from workflows.synthesis.reading import yes_no
from workflows.synthesis.script import Rejected, Script, play
from workflows.synthesis.templates import Template, load_template
from workflows.synthesis.writing import Unit, Writing, Written

_STEP = "verdict"
NO_VERDICT = "no verdict"


def template_of(settings: AnswerableSettings) -> Template:
    return load_template(settings.template, {_STEP: ("query", "title?", "passage")}, {})


class Answerable:
    """Verdicts are kept under the filter's name and its prompts: another filter or template asks anew."""

    def __init__(self, settings: AnswerableSettings, bench: Bench) -> None:
        self._settings = settings
        self._bench = bench
        self._template = template_of(settings)
        self._prompts = fingerprint_of(self._template.model_dump(mode="json"))
        self._name = f"{bench.name} {self._prompts[:8]}"

    def judge(self, rows: Sequence[Written]) -> list[str | None]:
        scripts = {str(place): self._script(row) for place, row in enumerate(rows)}
        return list(play(scripts, self._bench.answer, lambda _: NO_VERDICT).values())

    def keep(self, rows: Sequence[Written]) -> None:
        """Nothing to remember."""

    def about(self) -> Mapping[str, object]:
        return {"template": self._prompts}

    def _script(self, row: Written) -> Script[str | None]:
        """None where any positive answers the query."""
        bench = self._bench
        for number, passage in enumerate(row.row.positives):
            unit = Unit(f"{self._name} {row.row.id} {number}", passage)
            writing = Writing(unit, self._template, bench.style, bench.seed, bench.reserved).drawn()
            values = {"query": row.row.query, **writing.shown(passage)}
            if self._settings.by == "word":
                answers = yield from writing.ask(_STEP, values, yes_no, cold=True)
            else:
                yes = yield writing.weigh(_STEP, values, "yes")
                no = yield writing.weigh(_STEP, values, "no")
                if yes is None or no is None:
                    raise Rejected(NO_VERDICT)
                answers = yes - no >= math.log(self._settings.odds)
            if answers:
                return None
        return "the passage does not answer it"
