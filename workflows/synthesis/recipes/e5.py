"""Tasks are thought up, then a query, a positive and a hard negative of each (Wang et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workflows.synthesis.ngrams import same_words
from workflows.synthesis.reading import lines, record
from workflows.synthesis.recipes.config import E5Settings
from workflows.synthesis.script import Rejected, Script
from workflows.synthesis.writing import Outcome, Writing, language_slot, written_passage


class E5:
    def __init__(self, settings: E5Settings) -> None:
        self._settings = settings
        language = language_slot(settings.languages)
        self.steps: dict[str, Sequence[str]] = {
            **{f"tasks_{shape}": ("count?",) for shape in settings.shapes},
            **{f"row_{shape}": ("task", language) for shape in settings.shapes},
        }

    def write(self, writing: Writing) -> Script[list[Outcome]]:
        chosen = self._settings
        shape = writing.rng("shape").choice(chosen.shapes)
        tasks = yield from writing.ask(f"tasks_{shape}", {"count": str(chosen.tasks)}, lines)
        outcomes: list[Outcome] = []
        for task in (task for task in tasks[: chosen.tasks] for _ in range(chosen.per_task)):
            number = len(outcomes)
            row = writing.drawn("row", number)
            language = row.rng("language", number).choice(chosen.languages)
            values = {"task": task, "language": language}
            try:
                made = yield from row.ask(
                    f"row_{shape}", values, record("query", "positive", "hard_negative"), place=f"-{number}"
                )
            except Rejected as verdict:
                outcomes.append(writing.reject(number + 1, verdict.reason, verdict.text))
                continue
            if fault := _fault(made):
                outcomes.append(writing.reject(number + 1, fault, made["positive"]))
                continue
            positive, negative = (written_passage(made[name]) for name in ("positive", "hard_negative"))
            outcomes.append(
                row.written(
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


def _fault(made: Mapping[str, str]) -> str | None:
    if same_words(made["positive"], made["query"]):
        return "the positive is the query"
    return "the negative is the positive" if same_words(made["hard_negative"], made["positive"]) else None
