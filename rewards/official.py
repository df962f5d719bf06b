"""HotpotQA's official answer metrics for a file of predictions.

Source of the definitions: hotpot_evaluate_v1.py. With several accepted answers (MuSiQue, NQ) the best match
counts, as in those datasets' own scripts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rewards.text_match import Overlap, best_overlap, exact_match
from sleuth.errors import DataError, nearest
from sleuth.types import Question

Facts = Mapping[str, Iterable[tuple[str, int]]]


def score_predictions(
    questions: Sequence[Question],
    predictions: Mapping[str, Any],
    supporting_facts: Facts | None = None,
) -> dict[str, float]:
    """Means over ALL ``questions`` of ``em, f1, prec, recall``, with ``n`` and the number ``missing``.

    ``predictions`` is ``{"answer": {id: text}, "sp": {id: [[title, sentence], ...]}}``; a missing one
    counts as 0. If supporting facts are both known and predicted, ``sp_*`` and ``joint_*`` are added.
    Raises DataError for another layout or if there are no questions.
    """
    answers, facts = _answers(predictions), _facts(predictions)
    if not questions:
        raise DataError("there are no questions to score")
    rows = [_score(q, answers.get(q.id), facts.get(q.id), supporting_facts) for q in questions]
    n = len(questions)
    metrics: dict[str, float] = {name: sum(r.get(name, 0.0) for r in rows) / n for name in ANSWER_METRICS}
    if supporting_facts and any(q.id in facts and q.id in supporting_facts for q in questions):
        metrics |= {name: sum(r.get(name, 0.0) for r in rows) / n for name in FACT_METRICS}
    return {**metrics, "n": n, "missing": sum(q.id not in answers for q in questions)}


ANSWER_METRICS = ("em", "f1", "prec", "recall")
FACT_METRICS = (
    *("sp_em", "sp_f1", "sp_prec", "sp_recall"),
    *("joint_em", "joint_f1", "joint_prec", "joint_recall"),
)


def _score(
    question: Question,
    answer: str | None,
    predicted: set[tuple[str, int]] | None,
    supporting_facts: Facts | None,
) -> dict[str, float]:
    """The metrics of one question that can be computed; the others count as 0."""
    scores: dict[str, float] = {}
    if answer is not None:
        em, answered = exact_match(answer, question.answers), best_overlap(answer, question.answers)
        scores |= _named("", em, answered)
    if predicted is not None and supporting_facts is not None:
        wanted = set(supporting_facts.get(question.id, ()))
        found = _set_overlap(predicted, wanted)
        sp_em = float(predicted == wanted)
        scores |= _named("sp_", sp_em, found)
        if answer is not None:
            joint = _overlap(answered.precision * found.precision, answered.recall * found.recall)
            scores |= _named("joint_", em * sp_em, joint)
    return scores


def _named(prefix: str, em: float, overlap: Overlap) -> dict[str, float]:
    values = {"em": em, "f1": overlap.f1, "prec": overlap.precision, "recall": overlap.recall}
    return {prefix + name: value for name, value in values.items()}


def _set_overlap(predicted: set[tuple[str, int]], wanted: set[tuple[str, int]]) -> Overlap:
    same = len(predicted & wanted)
    return _overlap(same / len(predicted) if predicted else 0.0, same / len(wanted) if wanted else 0.0)


def _overlap(precision: float, recall: float) -> Overlap:
    total = precision + recall
    return Overlap(2 * precision * recall / total if total > 0 else 0.0, precision, recall)


def _answers(predictions: Mapping[str, Any]) -> Mapping[str, str]:
    answers = predictions.get("answer")
    if not isinstance(answers, Mapping):
        near = nearest("answer", map(str, predictions))
        raise DataError('the predictions have no "answer": {id: text}', f"rename '{near}' to it" if near else "")
    for question, text in answers.items():
        if text is not None and not isinstance(text, str):
            raise DataError(f"the answer predicted for {question} is not a string")
    return {question: text for question, text in answers.items() if text is not None}


def _facts(predictions: Mapping[str, Any]) -> dict[str, set[tuple[str, int]]]:
    try:
        return {
            question: {(title, sentence) for title, sentence in facts}
            for question, facts in (predictions.get("sp") or {}).items()
        }
    except (AttributeError, TypeError, ValueError):
        raise DataError('"sp" is not {id: [[title, sentence number], ...]}') from None
