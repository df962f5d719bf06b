"""Near-duplicates among the queries that are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from datasketch import MinHash, MinHashLSH

from retrieval.passages import content_key
from workflows.synthesis.filters.base import Bench
from workflows.synthesis.filters.config import NearDuplicatesSettings
from workflows.synthesis.ngrams import ngrams, words_of
from workflows.synthesis.writing import Written

_SEED = 1
"""Of the permutations: the same rows are duplicates in every run."""
_LOOSER = 0.7
_WEIGHTS = (0.1, 0.9)
"""Candidates are looked for far below the threshold, and too many rather than too few: hashing misses some of those
that are just above it, and the n-grams are compared anyway."""


class NearDuplicates:
    """Candidates by locality-sensitive hashing, then the n-grams themselves are compared: none is dropped by chance."""

    def __init__(self, settings: NearDuplicatesSettings, _bench: Bench | None = None) -> None:
        self._settings = settings
        self._index = MinHashLSH(_LOOSER * settings.threshold, settings.permutations, _WEIGHTS)
        self._shingles: dict[str, frozenset[str]] = {}
        self._queries: set[str] = set()
        self._of_passage: Counter[str] = Counter()

    def judge(self, rows: Sequence[Written]) -> list[str | None]:
        """In order, each also against those before it; what a later filter drops still hides its copies in ``rows``."""
        mine = NearDuplicates(self._settings)
        verdicts = []
        for row in rows:
            fault = self._fault(row) or mine._fault(row) or self._crowded(row, mine)
            if fault is None:
                mine.keep([row])
            verdicts.append(fault)
        return verdicts

    def keep(self, rows: Sequence[Written]) -> None:
        for row in rows:
            words = words_of(row.row.query)
            self._queries.add(" ".join(words))
            self._of_passage.update(content_key(passage) for passage in row.row.positives)
            shingles = ngrams(words, self._settings.shingle)
            if shingles:
                name = str(len(self._shingles))
                self._shingles[name] = shingles
                self._index.insert(name, self._hash(shingles))

    def about(self) -> Mapping[str, object]:
        return {}

    def _fault(self, row: Written) -> str | None:
        words = words_of(row.row.query)
        if " ".join(words) in self._queries:
            return "the same query"
        shingles = ngrams(words, self._settings.shingle)
        if not shingles:
            return None
        near = (self._shingles[name] for name in self._index.query(self._hash(shingles)))
        alike = any(len(shingles & other) / len(shingles | other) >= self._settings.threshold for other in near)
        return "a similar query" if alike else None

    def _crowded(self, row: Written, mine: NearDuplicates) -> str | None:
        most = self._settings.per_passage
        if most is None:
            return None
        counts = (self._of_passage[key] + mine._of_passage[key] for key in map(content_key, row.row.positives))
        return "enough of this passage" if max(counts) >= most else None

    def _hash(self, shingles: frozenset[str]) -> MinHash:
        made = MinHash(num_perm=self._settings.permutations, seed=_SEED)
        made.update_batch([shingle.encode() for shingle in sorted(shingles)])
        return made
