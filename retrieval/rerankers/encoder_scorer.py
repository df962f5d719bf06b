"""An encoder as a reranker: scores the pairs that it is given, without an index of their passages.

A late-interaction encoder ranks a first stage's hits again in this way (ColBERT, Khattab and Zaharia 2020); so can one
of any family.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import groupby

from retrieval.encoders.encoder import Encoder
from retrieval.rerankers.scorer import Pair

_PAIRS = 1_024
"""Pairs whose encodings are in memory at once, rounded up to whole queries."""


class EncoderScorer:
    """Scores of ``encoder``, as those of an index that keeps all it gives."""

    def __init__(self, encoder: Encoder, batch_size: int = 32) -> None:
        self._encoder = encoder
        self._batch_size = batch_size
        self._lock = threading.Lock()

    @property
    def fingerprint(self) -> str:
        return self._encoder.fingerprint

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Each query of consecutive pairs is encoded once, and each passage once for all queries nearby."""
        found: list[float] = []
        waiting: list[Pair] = []
        with self._lock:
            for _, same in groupby(pairs, key=lambda pair: pair[0]):
                waiting += same
                if len(waiting) >= _PAIRS:
                    found += self._score(waiting)
                    waiting = []
            return found + (self._score(waiting) if waiting else [])

    def _score(self, pairs: Sequence[Pair]) -> list[float]:
        asked = {query: row for row, query in enumerate(dict.fromkeys(query for query, _ in pairs))}
        read = {text: row for row, text in enumerate(dict.fromkeys(text for _, text in pairs))}
        queries = self._encoder.encode_texts(list(asked), "query", self._batch_size)
        passages = self._encoder.encode_texts(list(read), "passage", self._batch_size)
        found: list[float] = []
        for query, same in groupby(pairs, key=lambda pair: pair[0]):
            rows = [read[text] for _, text in same]
            found += self._encoder.family.scores(queries[[asked[query]]], passages[rows])[0].tolist()
        return found
