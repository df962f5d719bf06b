"""Nothing of a dev or test set may be written into training rows."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from sleuth.artifacts import fingerprint_of
from sleuth.errors import DataError
from workflows.synthesis.filters.base import Bench
from workflows.synthesis.filters.config import LeakageSettings
from workflows.synthesis.filters.held_out import HeldOut, below, beside, named
from workflows.synthesis.ngrams import ngrams, words_of
from workflows.synthesis.writing import Written, is_written

log = logging.getLogger("sleuth.synthesize")

DATA = "SLEUTH_DATA"
_SHARES = "shares words with a held-out question"
_LEAST = 4
"""Words of a short question from which it counts also where it is a part of a text: two or three are in many."""


class Leakage:
    def __init__(self, settings: LeakageSettings, bench: Bench) -> None:
        self._length = settings.words
        self._sets: dict[str, int] = {}
        self._grams: set[str] = set()
        self._short: dict[int, set[str]] = defaultdict(set)
        for place in settings.against:
            if not sum([self._learn(one, strict=place.is_file()) for one in named(place)]):
                hint = "questions are in the fields question, query or text, or lines id<tab>text"
                raise DataError(f"{place} has no question of a dev or test set that can be read", hint)
        if settings.present:
            data = os.environ.get(DATA)
            for one in [*(beside(bench.corpus) if bench.corpus else []), *(below(Path(data)) if data else [])]:
                self._learn(one)
        log.info("leakage: %d questions of %d dev and test sets", sum(self._sets.values()), len(self._sets))
        if not self._sets:
            log.warning("leakage: no dev or test set beside the corpus or below %s: nothing is dropped", DATA)

    def judge(self, rows: Sequence[Written]) -> list[str | None]:
        return [self._fault(row) for row in rows]

    def keep(self, rows: Sequence[Written]) -> None:
        """Nothing to remember."""

    def about(self) -> Mapping[str, object]:
        known = [sorted(self._grams), *(sorted(some) for _, some in sorted(self._short.items()))]
        return {"sets": self._sets, "questions": fingerprint_of(known)}

    def _learn(self, one: HeldOut, strict: bool = False) -> int:
        """The number of its questions. A file that cannot be read is passed over with a warning, unless ``strict``."""
        name = str(one.path.absolute())
        if name in self._sets:
            return self._sets[name]
        try:
            questions = list(filter(None, map(words_of, one.questions)))
        except DataError as error:
            if strict:
                raise
            log.warning("leakage: %s is not read: %s", one.path, error.message)
            return 0
        for words in questions:
            if len(words) >= self._length:
                self._grams |= ngrams(words, self._length)
            else:
                self._short[len(words)].add(" ".join(words))
        if questions:
            self._sets[name] = len(questions)
        else:
            log.warning("leakage: %s is named as a dev or test set, and has no question that can be read", one.path)
        return len(questions)

    def _fault(self, written: Written) -> str | None:
        row = written.row
        words = words_of(row.query)
        if " ".join(words) in self._short.get(len(words), ()):
            return "a held-out question"
        if self._shares(words):
            return _SHARES
        passages = (passage for passage in (*row.positives, *row.negatives) if is_written(passage))
        texts = [row.instruction, *(f"{passage.title} {passage.text}" for passage in passages)]
        return f"a written passage or task {_SHARES}" if any(self._shares(words_of(text)) for text in texts) else None

    def _shares(self, words: Sequence[str]) -> bool:
        """Whether a text has enough words in a row of a longer question, or the whole of a shorter one."""
        lengths = [(self._length, self._grams), *((n, some) for n, some in self._short.items() if n >= _LEAST)]
        return any(not ngrams(words, length).isdisjoint(known) for length, known in lengths)
