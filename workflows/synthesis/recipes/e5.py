"""Tasks are thought up, then a query, a positive and a hard negative of each (Wang et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from workflows.synthesis.reading import lines, record
from workflows.synthesis.recipes.config import E5Settings
from workflows.synthesis.script import Rejected, Script
from workflows.synthesis.writing import Outcome, Writing, written_passage

SHAPES = ("short_long", "long_short", "short_short", "long_long")


class E5:
    steps: ClassVar[Mapping[str, Sequence[str]]] = {
        **{f"tasks_{shape}": ("count",) for shape in SHAPES},
        **{f"row_{shape}": ("task", "language") for shape in SHAPES},
    }

    def __init__(self, settings: E5Settings) -> None:
        self._settings = settings

    def write(self, writing: Writing) -> Script[list[Outcome]]:
        rng, chosen = writing.rng, self._settings
        shape, language = rng.choice(chosen.shapes), rng.choice(chosen.languages)
        tasks = yield from writing.ask(f"tasks_{shape}", {"count": str(chosen.tasks)}, lines)
        outcomes: list[Outcome] = []
        for task in (task for task in tasks[: chosen.tasks] for _ in range(chosen.per_task)):
            number = len(outcomes)
            values = {"task": task, "language": language}
            try:
                made = yield from writing.ask(
                    f"row_{shape}", values, record("query", "positive", "hard_negative"), place=f"-{number}"
                )
            except Rejected as verdict:
                outcomes.append(writing.reject(number + 1, verdict.reason, verdict.text))
                continue
            positive, negative = (written_passage(made[name]) for name in ("positive", "hard_negative"))
            if positive == negative:
                outcomes.append(writing.reject(number + 1, "the negative is the positive", made["positive"]))
                continue
            outcomes.append(
                writing.written(
                    number + 1,
                    made["query"],
                    [positive],
                    [negative],
                    instruction=task,
                    recipe="e5",
                    made={"shape": shape, "language": language},
                )
            )
        return outcomes
