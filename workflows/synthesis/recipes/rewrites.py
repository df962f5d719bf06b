"""Rows that exist, in other words: paraphrased, made to stand alone, or taken apart into searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from retrieval.training.row import TrainingRow
from sleuth.types import Passage
from workflows.synthesis.ngrams import same_words
from workflows.synthesis.reading import as_list, first_fit, line, sound
from workflows.synthesis.recipes.config import RewritesSettings
from workflows.synthesis.script import Rejected, Script, Unreadable
from workflows.synthesis.writing import Outcome, Writing

_SLOTS: Mapping[str, Sequence[str]] = {
    "paraphrase": ("query", "title?", "passage?"),
    "decontextualise": ("query", "title?", "passage"),
    "decompose": ("query", "passages"),
}


class Rewrites:
    def __init__(self, settings: RewritesSettings) -> None:
        self._settings = settings
        self.steps = {into: _SLOTS[into] for into in settings.into}

    def write(self, writing: Writing) -> Script[list[Outcome]]:
        outcomes: list[Outcome] = []
        for into in self._settings.into:
            try:
                if into == "decompose":
                    outcomes += yield from self._searches(writing, len(outcomes))
                else:
                    outcomes.append((yield from self._reworded(writing, into, len(outcomes))))
            except Rejected as verdict:
                outcomes.append(writing.reject(len(outcomes), verdict.reason, verdict.text))
        return outcomes

    def _reworded(self, writing: Writing, into: str, number: int) -> Script[Outcome]:
        row = _row(writing)
        values = {"query": row.query, **writing.shown(row.positives[0])}
        query = yield from writing.ask(into, values, line, entire=True)
        if same_words(query, row.query):
            raise Rejected("the same as before", query)
        return _again(writing, number, query, row.positives, row.negatives, into)

    def _searches(self, writing: Writing, number: int) -> Script[list[Outcome]]:
        row = _row(writing)
        if len(row.positives) < 2:
            raise Rejected("one passage only")
        listed = (writing.shown(passage) for passage in row.positives)
        shown = "\n\n".join(f"[{i}] {one['title']}. {one['passage']}" for i, one in enumerate(listed, start=1))
        values = {"query": row.query, "passages": shown}

        def searches(value: object) -> list[tuple[str, int]]:
            return _searches_in(value, len(row.positives))

        found = yield from writing.ask("decompose", values, lambda text: first_fit(text, searches))
        return [
            _again(writing, number + i, search, [row.positives[place]], row.negatives, "decompose")
            for i, (search, place) in enumerate(found)
        ]


def _searches_in(value: object, passages: int) -> list[tuple[str, int]]:
    """(search, place of its passage), in order. Raises Unreadable."""
    found = []
    for one in as_list(value):
        if not isinstance(one, dict):
            raise Unreadable("no searches")
        search, number = one.get("search"), str(one.get("passage", "")).strip("[] ")
        if not isinstance(search, str) or not search.strip() or not number.isdecimal():
            raise Unreadable("no search with its passage")
        if not 1 <= int(number) <= passages:
            raise Unreadable("no such passage")
        found.append((sound(search.strip()), int(number) - 1))
    if not found:
        raise Unreadable("no searches")
    return found


def _again(
    writing: Writing,
    number: int,
    query: str,
    positives: Sequence[Passage],
    negatives: Sequence[Passage],
    into: str,
) -> Outcome:
    row = _row(writing)
    own = [passage for passage in negatives if passage not in positives]
    made = writing.written(
        number,
        query,
        positives,
        own,
        row.instruction,
        "rewrites",
        row.answers if into != "decompose" else (),
        {"into": into, "original": row.query, "original_id": row.id},
    )
    return replace(made, row=replace(made.row, weight=row.weight, query_form=row.query_form))


def _row(writing: Writing) -> TrainingRow:
    assert writing.unit.row is not None
    return writing.unit.row
