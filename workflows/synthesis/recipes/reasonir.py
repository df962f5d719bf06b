"""Long queries and queries that need reasoning, with hard negatives in further turns (Shao et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.writing.asks import Message
from sleuth.types import Passage
from workflows.synthesis.filters.texts import count_words
from workflows.synthesis.ngrams import same_words
from workflows.synthesis.reading import whole
from workflows.synthesis.recipes.config import ReasonIRSettings
from workflows.synthesis.script import Rejected, Script
from workflows.synthesis.writing import Outcome, Writing, Written, written_passage

_TOKENS_A_WORD = 2
_STEPS = {"varied_length": ("long_query", "document"), "hard_query": ("hard_query",)}
_SLOTS: Mapping[str, Sequence[str]] = {
    "long_query": ("title?", "passage", "words"),
    "document": ("query",),
    "hard_query": ("title?", "passage"),
    "negative": ("query?",),
}


class ReasonIR:
    def __init__(self, settings: ReasonIRSettings) -> None:
        self._settings = settings
        asked = [*(step for part in settings.parts for step in _STEPS[part]), *(["negative"] * settings.negatives)]
        self.steps = {step: _SLOTS[step] for step in asked}

    def write(self, writing: Writing) -> Script[list[Outcome]]:
        parts = {"varied_length": self._varied_length, "hard_query": self._hard_query}
        outcomes: list[Outcome] = []
        for number, part in enumerate(self._settings.parts, start=1):
            try:
                outcomes.append((yield from parts[part](writing, number)))
            except Rejected as verdict:
                outcomes.append(writing.reject(number, verdict.reason, verdict.text))
        return outcomes

    def _varied_length(self, writing: Writing, number: int) -> Script[Written]:
        passage = _passage(writing)
        words = writing.rng("words").randint(*sorted(self._settings.words))
        values = {**writing.shown(passage), "words": str(words)}
        query = yield from writing.ask("long_query", values, whole, max_tokens=_TOKENS_A_WORD * words, entire=True)
        if count_words(query) < self._settings.least_share * words:
            raise Rejected("the query is shorter than asked for", query)
        document = yield from writing.ask("document", {"query": query}, whole, entire=True)
        if same_words(document, query):
            raise Rejected("the positive is the query", document)
        said = (*writing.messages("document", {"query": query}), Message("assistant", document))
        negatives = yield from self._negatives(writing, query, said, number)
        return self._row(writing, number, query, written_passage(document), negatives, {"asked_words": words})

    def _hard_query(self, writing: Writing, number: int) -> Script[Written]:
        passage = _passage(writing)
        query = yield from writing.ask("hard_query", writing.shown(passage), whole, entire=True)
        said = (*writing.messages("hard_query", writing.shown(passage)), Message("assistant", query))
        negatives = yield from self._negatives(writing, query, said, number)
        return self._row(writing, number, query, passage, negatives)

    def _negatives(self, writing: Writing, query: str, said: tuple[Message, ...], number: int) -> Script[list[Passage]]:
        """Each in a further turn of the conversation, which has those before."""
        found: list[Passage] = []
        for turn in range(self._settings.negatives):
            values = {"query": query}
            place = f"-{number}-{turn}"
            text = yield from writing.ask("negative", values, whole, place=place, after=said, entire=True)
            said = (*said, *writing.messages("negative", values), Message("assistant", text))
            found.append(written_passage(text))
        return found

    def _row(
        self,
        writing: Writing,
        number: int,
        query: str,
        positive: Passage,
        negatives: Sequence[Passage],
        more: Mapping[str, int] | None = None,
    ) -> Written:
        different = [one for one in dict.fromkeys(negatives) if not writing.repeats(one.text, positive)]
        made = {"part": self._settings.parts[number - 1], **(more or {})}
        return writing.written(number, query, [positive], different, recipe="reasonir", made=made)


def _passage(writing: Writing) -> Passage:
    assert writing.unit.passage is not None
    return writing.unit.passage
