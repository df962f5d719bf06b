"""Who asks and how is chosen for a passage, then the query is written in that manner (Zhang et al. 2025)."""

from __future__ import annotations

from workflows.synthesis.reading import record
from workflows.synthesis.recipes.config import Qwen3Settings
from workflows.synthesis.script import Script
from workflows.synthesis.writing import Outcome, Writing, language_slot

OFFERED = 5
"""Personas that the model chooses from."""


class Qwen3:
    def __init__(self, settings: Qwen3Settings) -> None:
        self._settings = settings
        self.steps = {
            "setting": ("title?", "passage", "personas?", "language?"),
            "query": ("title?", "passage", "persona?", "type?", "difficulty?", language_slot(settings.languages)),
        }

    def write(self, writing: Writing) -> Script[list[Outcome]]:
        passage = writing.unit.passage
        assert passage is not None
        language = writing.rng("language").choice(self._settings.languages)
        known = writing.template.choices.get("persona", [])
        some = writing.rng("personas").sample(known, min(OFFERED, len(known)))
        personas = "\n".join(f"- {persona}" for persona in some)
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
