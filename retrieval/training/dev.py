"""Dev evaluation during training: judged queries against passages held in memory."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from retrieval.encoders.encoder import Encoder
from retrieval.encoders.family import Encoded
from retrieval.encoders.pieces import encode_pieces, nearest, pieces_of
from retrieval.evaluation.measures import per_query
from retrieval.training.config import DevSettings, SourceSettings
from retrieval.training.instructions import encode_queries
from retrieval.training.row import TrainingRow, passages_of
from retrieval.training.rows import load_rows, read_passages
from sleuth.errors import DataError
from sleuth.types import Passage


@dataclass(frozen=True, slots=True)
class DevSet:
    """Queries with their gold passages, and the passages to search."""

    rows: Sequence[TrainingRow]
    passages: Sequence[Passage]

    def per_query(
        self,
        encoder: Encoder,
        k: int,
        table: Encoded | None = None,
        batch_size: int = 64,
        on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> dict[str, list[float]]:
        """``recall`` and ``all_gold`` among the first ``k``, and ``ndcg10``, of every query.

        ``table``: the passages' encodings, if available. ``on_progress`` gets passages encoded and in total.
        """
        queries = encode_queries(encoder, self.rows, batch_size)
        pieces = pieces_of(len(self.passages))
        count: Callable[[int], None] = lambda done: on_progress(done, len(self.passages))
        made = encode_pieces(self.passages, encoder, pieces, batch_size, count)
        known = made if table is None else (table[piece.start : piece.stop] for piece in pieces)
        _, places = nearest(encoder, queries, known, max(k, 10))
        return judge_all(self.rows, [[self.passages[place].id for place in row] for row in places.tolist()], k)


def source_of(settings: DevSettings) -> SourceSettings:
    """Where the judged queries are read."""
    return SourceSettings(
        path=settings.path, split=settings.split, corpus=settings.corpus, instruction=settings.instruction
    )


def load_dev(settings: DevSettings, seed: int, more: Sequence[Passage] = ()) -> DevSet:
    """The judged queries and the passages to search.

    For a BEIR folder these are its whole corpus, or a sample; for a release file without a corpus, the paragraphs of
    its own questions and ``more``, or those of ``settings.beside``. Raises DataError for a passage that cannot be
    read.
    """
    rows = load_rows([source_of(settings)])[: settings.queries]
    if settings.beside is not None:
        more = passages_of(load_rows([SourceSettings(path=path) for path in settings.beside]))
    corpus = settings.corpus or (settings.path if Path(settings.path).is_dir() else None)
    everything = read_passages(corpus) if corpus else [*passages_of(rows), *more]
    first: dict[str, Passage] = {}
    for passage in everything:  # the dev set's own come first: a training passage with the same id may differ
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


def judge_all(rows: Sequence[TrainingRow], found: Sequence[Sequence[str]], k: int) -> dict[str, list[float]]:
    """The measures of every row; ``found`` has the ids of each row's hits, best first."""
    qrels = {str(place): {p.id: 1 for p in row.positives} for place, row in enumerate(rows)}
    run = {str(place): {hit: -float(rank) for rank, hit in enumerate(hits)} for place, hits in enumerate(found)}
    measures = {"recall": f"R@{k}", "all_gold": f"AllGold@{k}", "ndcg10": "nDCG@10"}
    values = per_query(qrels, run, list(measures.values()))
    return {name: list(values[measure].values()) for name, measure in measures.items()}


def means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: fmean(numbers) for name, numbers in values.items()}
