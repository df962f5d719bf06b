"""Dev figures during training: judged queries against passages held in memory."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders.encoder import Encoder, Vectors
from retrieval.passages import passage_text
from retrieval.training.config import DevSettings, SourceSettings
from retrieval.training.rows import TrainingRow, load_rows, passages_of, read_passages
from sleuth.errors import DataError
from sleuth.types import Passage


@dataclass(frozen=True, slots=True)
class DevSet:
    """Queries with their golds, and the passages that they are searched in."""

    rows: Sequence[TrainingRow]
    passages: Sequence[Passage]

    def per_query(
        self,
        encoder: Encoder,
        k: int,
        table: Vectors | None = None,
        batch_size: int = 64,
        on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> dict[str, list[float]]:
        """``recall`` and ``all_gold`` among the first ``k``, and ``ndcg10``, of every query.

        ``table``: vectors of the passages, where they are known already. ``on_progress`` gets passages encoded and in
        all.
        """
        if table is None:
            texts = [passage_text(p) for p in self.passages]
            count: Callable[[int], None] = lambda done: on_progress(done, len(texts))
            table = encoder.encode(texts, "passage", batch_size, count)
        queries = encoder.encode([row.query for row in self.rows], "query", batch_size=batch_size)
        found = top(queries, table, min(max(k, 10), len(self.passages))).tolist()
        return judge_all(self.rows, [[self.passages[place].id for place in places] for places in found], k)


def load_dev(settings: DevSettings, seed: int, more: Sequence[Passage] = ()) -> DevSet:
    """The judged queries and the passages to search.

    A BEIR folder is searched whole, or a sample of it; a release file without a corpus is searched in the paragraphs
    of its own questions and ``more``, or those of ``settings.beside``. Raises DataError for a passage that cannot be
    read.
    """
    source = SourceSettings(path=settings.path, split=settings.split, corpus=settings.corpus)
    rows = load_rows([source])[: settings.queries]
    if settings.beside is not None:
        more = passages_of(load_rows([SourceSettings(path=path) for path in settings.beside]))
    corpus = settings.corpus or (settings.path if Path(settings.path).is_dir() else None)
    everything = read_passages(corpus) if corpus else [*passages_of(rows), *more]
    first: dict[str, Passage] = {}
    for passage in everything:  # the dev set's own come first: a training passage of the same id may differ
        first.setdefault(passage.id, passage)
    distinct = list(first.values())
    golds = {p.id for row in rows for p in row.positives}
    lost = golds - {p.id for p in distinct}
    if lost:
        raise DataError(f"{len(lost)} golds of {settings.path} are not among the passages searched: {min(lost)}")
    return DevSet(rows, _some(distinct, golds, settings.passages, seed))


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


def judge_all(rows: Sequence[TrainingRow], found: Sequence[Sequence[str]], k: int) -> dict[str, list[float]]:
    """The figures of `judge` for every row; ``found`` holds the ids of each row's hits, best first."""
    golds = [{p.id for p in row.positives} for row in rows]
    each = [judge(hits, gold, k) for hits, gold in zip(found, golds, strict=True)]
    return {name: [one[name] for one in each] for name in each[0]}


def means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: float(np.mean(numbers)) for name, numbers in values.items()}
