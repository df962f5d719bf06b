"""Runs queries through a retriever, and judges hits by the answers they contain."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from retrieval.corpus import PassageRow, read_rows
from retrieval.evaluation.answers import answer_qrels
from retrieval.evaluation.judgements import Qrels
from retrieval.evaluation.runs import Run
from retrieval.size import limit_of, size_of
from sleuth.evidence import parent_id
from sleuth.hits import distinct
from sleuth.protocols import Retriever
from sleuth.types import Hit, Question

BATCH = 64
_DEEPEST = 16
"""Windows searched for each passage that is wanted, at most."""
LeftOut = Callable[[str], frozenset[str]]
"""The ids of passages that are no part of a query's ranking, by its id."""
OnProgress = Callable[[int, int], None]
"""Called as (queries done, queries in total)."""


@dataclass(frozen=True, slots=True)
class Retrieved:
    """A run and, for queries with known answers, which of their hits contain one."""

    run: Run
    answers: Qrels = field(default_factory=dict)


def retrieve(
    retriever: Retriever,
    queries: Sequence[Question],
    k: int,
    *,
    batch_size: int = BATCH,
    left_out: LeftOut = lambda _query: frozenset(),
    judged: int | None = None,
    whole: bool = False,
    on_progress: OnProgress | None = None,
) -> Retrieved:
    """At most ``k`` hits for every query; all passages if there are fewer.

    The passages that ``left_out`` names for a query do not count: as many more are searched for, as far as the
    retriever gives them. ``whole``: a window counts as the passage that it was cut from, at the score of the best one
    (MaxP, Dai and Callan 2019); so many more are searched for too. Answers are looked for in the first ``judged`` hits,
    and in those that tie with them; None: in all.
    """
    most = min(size_of(retriever) or sys.maxsize, limit_of(retriever) or sys.maxsize)
    run: Run = {}
    answers: Qrels = {}
    for start in range(0, len(queries), batch_size):
        batch = queries[start : start + batch_size]
        depth = k + max(len(left_out(query.id)) for query in batch)
        searched = _search(retriever, [query.text for query in batch], depth, most, whole=whole)
        for query, every in zip(batch, searched, strict=True):
            out = left_out(query.id)
            hits = [hit for hit in distinct(every) if hit.passage.id not in out][:k]
            run[query.id] = {hit.passage.id: hit.score for hit in hits}
            if query.answers:
                texts = {query.id: {hit.passage.id: hit.passage.text for hit in _first(hits, judged)}}
                answers |= answer_qrels({query.id: query.answers}, texts)
        if on_progress:
            on_progress(min(start + batch_size, len(queries)), len(queries))
    return Retrieved(run, answers)


def _search(retriever: Retriever, texts: Sequence[str], k: int, most: int, *, whole: bool) -> list[list[Hit]]:
    """``k`` hits a query, with ``whole`` those of ``k`` passages, as far as ``most`` hits have so many."""
    reach, end = min(k, most), min(_DEEPEST * k, most)
    while True:
        found = retriever.search(texts, reach)
        if not whole or not any(parent_id(hit.passage.id) != hit.passage.id for hits in found for hit in hits):
            return found
        passages = [distinct([_of_passage(hit) for hit in hits]) for hits in found]
        short = any(len(few) < k and len(hits) == reach for few, hits in zip(passages, found, strict=True))
        if not short or reach == end:
            return passages
        reach = min(2 * reach, end)


def _of_passage(hit: Hit) -> Hit:
    parent = parent_id(hit.passage.id)
    return hit if parent == hit.passage.id else replace(hit, passage=replace(hit.passage, id=parent))


def _first(hits: Sequence[Hit], count: int | None) -> Sequence[Hit]:
    """The first ``count`` hits and those whose scores trec_eval, which compares 32 bits, may take for equal."""
    if count is None or count >= len(hits):
        return hits
    if count == 0:
        return []
    lowest = hits[count - 1].score
    return [hit for hit in hits if hit.score >= lowest - 1e-6 * abs(lowest)]


def judge_run(run: Run, answers: Mapping[str, Sequence[str]], corpus: str | Path) -> Qrels:
    """Which hits of a run file contain an answer; their texts are read from ``corpus`` in one pass."""
    wanted = {passage for query in answers for passage in run.get(query, {})}
    texts = {
        row.passage.id: row.passage.text
        for row in read_rows(corpus)
        if isinstance(row, PassageRow) and row.passage.id in wanted
    }
    by_query = {
        query: {passage: texts[passage] for passage in run.get(query, {}) if passage in texts} for query in answers
    }
    return answer_qrels(answers, by_query)
