"""Dev figures during training: judged queries against passages held in memory."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.corpus import BadRow, read_rows
from retrieval.encoders.encoder import Encoder, Vectors
from retrieval.training.config import DevSettings, SourceSettings
from retrieval.training.rows import TrainingRow, load_rows
from retrieval.training.sampling import passage_text
from sleuth.errors import DataError
from sleuth.types import Passage


@dataclass(frozen=True, slots=True)
class DevSet:
    """Queries with their golds, and the passages that they are searched in."""

    rows: Sequence[TrainingRow]
    passages: Sequence[Passage]

    def figures(self, encoder: Encoder, k: int, table: Vectors | None = None, batch_size: int = 64) -> dict[str, float]:
        """``recall`` and ``all_gold`` among the first ``k``, ``ndcg10``: means over all queries.

        ``table``: vectors of the passages, where they are known already.
        """
        if table is None:
            table = encoder.encode([passage_text(p) for p in self.passages], "passage", batch_size=batch_size)
        queries = encoder.encode([row.query for row in self.rows], "query", batch_size=batch_size)
        depth = min(max(k, 10), len(self.passages))
        ids = np.array([p.id for p in self.passages], dtype=object)
        found = [ids[places].tolist() for places in top(queries, table, depth)]
        golds = [{p.id for p in row.positives} for row in self.rows]
        each = [judge(hits, gold, k) for hits, gold in zip(found, golds, strict=True)]
        return {name: float(np.mean([figures[name] for figures in each])) for name in each[0]}


def load_dev(settings: DevSettings, seed: int) -> DevSet:
    """The judged queries and the passages to search. Raises DataError when a gold is not among the passages."""
    source = SourceSettings(path=settings.path, layout="beir", split=settings.split, corpus=settings.corpus)
    rows = load_rows([source])[: settings.queries]
    golds = {p.id for row in rows for p in row.positives}
    everything: list[Passage] = []
    for row in read_rows(settings.corpus or settings.path):
        if isinstance(row, BadRow):
            raise DataError(str(row), "mend the corpus")
        everything.append(row.passage)
    return DevSet(rows, _some(everything, golds, settings.passages, seed))


def _some(passages: Sequence[Passage], golds: set[str], limit: int | None, seed: int) -> list[Passage]:
    if limit is None or limit >= len(passages):
        return list(passages)
    others = [p for p in passages if p.id not in golds]
    drawn = {p.id for p in random.Random(f"{seed}/dev").sample(others, max(0, min(limit - len(golds), len(others))))}
    return [p for p in passages if p.id in golds or p.id in drawn]


def top(queries: Vectors, table: Vectors, k: int) -> NDArray[np.int64]:
    """[queries, k] positions of the highest inner products, best first, equal ones in order of position."""
    scores = queries @ table.T
    order: NDArray[np.int64] = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order


def judge(hits: Sequence[str], golds: set[str], k: int) -> Mapping[str, float]:
    """One query's figures; ndcg10 with a gain of 1 a gold."""
    found = golds & set(hits[:k])
    gains = sum(1 / np.log2(place + 2) for place, hit in enumerate(hits[:10]) if hit in golds)
    ideal = sum(1 / np.log2(place + 2) for place in range(min(len(golds), 10)))
    return {"recall": len(found) / len(golds), "all_gold": float(found == golds), "ndcg10": float(gains / ideal)}
