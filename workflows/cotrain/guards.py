"""Guards of co-training: what never trains, which retriever is not swapped in, and how the agent's queries develop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sleuth.evidence import contains_answer, same_text, telling_answers
from sleuth.protocols import Retriever
from sleuth.query_forms import form_of, last_thought, written
from sleuth.statistics import paired_difference
from sleuth.types import Trajectory

Values = Mapping[tuple[str, str], float]
"""A value by question: id and text."""


def answer_recall(retriever: Retriever, trajectories: Sequence[Trajectory], k: int) -> Values:
    """Of every question that searched, 1 if an accepted answer stands in the ``k`` best hits of one of its queries.

    The queries are those that were asked, written in the retriever's own form. Questions without an answer that is
    evidence (yes, no, what the question itself names) are left out; gold passages are not read.
    """
    asked: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    form = form_of(retriever)
    for one in trajectories:
        question = one.question
        answers = telling_answers(question)
        found = [(query, last_thought(turn.text)) for turn in one.searches for query, _ in turn.found]
        if answers and found:
            texts = [written(form, query, question.text, thought) for query, thought in found]
            asked[question.id, question.text] = answers, texts
    every = list(dict.fromkeys(text for _, texts in asked.values() for text in texts))
    hits = dict(zip(every, retriever.search(every, k) if every else [], strict=True))
    return {
        key: float(any(contains_answer(hit.passage, answers) for text in texts for hit in hits[text]))
        for key, (answers, texts) in asked.items()
    }


def compared(before: Values, after: Values) -> dict[str, Any]:
    """Means and their paired difference over the questions of both; only ``n`` where there are none."""
    shared = sorted(before.keys() & after.keys())
    if not shared:
        return {"n": 0}
    a, b = [before[key] for key in shared], [after[key] for key in shared]
    difference = paired_difference(a, b)
    return {"n": len(shared), "before": sum(a) / len(a), "after": sum(b) / len(b), **asdict(difference)}


def query_figures(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """How varied the queries are.

    ``distinct``: distinct queries to a question that searched; below 1, different questions ask the same. ``copied``:
    share that only says the question again, ``repeated``: share that asks what its episode has asked before.
    """
    queries, questions, copied, repeated = [], set(), 0, 0
    for one in trajectories:
        seen: set[str] = set()
        for text in map(same_text, one.queries):
            queries.append(text)
            questions.add((one.question.file, one.question.id))
            copied += text == same_text(one.question.text)
            repeated += text in seen
            seen.add(text)
    count = max(len(queries), 1)
    return {
        "queries": len(queries),
        "distinct": len(set(queries)) / max(len(questions), 1),
        "copied": copied / count,
        "repeated": repeated / count,
    }
