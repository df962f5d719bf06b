"""Several sampled answers per question: mean@k, pass@k and majority@k."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from agent.evaluate import AnswerFigures, AnswerMetric, EvaluationReport, report_on
from sleuth.statistics import mean_interval
from sleuth.types import ScoredTrajectory, Trajectory

Answers = Sequence[str | None]
"""The answers to one question, one per sample; None if none was given."""


def sampled_report(
    samples: Sequence[Sequence[ScoredTrajectory]],
    metrics: Mapping[str, AnswerMetric],
    normalise: Callable[[str], str],
    resamples: int = 10_000,
) -> EvaluationReport:
    """The report on k samples of the same questions.

    Every metric is its mean over a question's samples (mean@k). For ``em``, which must be among ``metrics``, there
    are also ``pass@k`` (any sample is right) and ``majority@k`` (the most common normalised answer is right; ties go
    to the first sampled; missing answers do not vote). Intervals are over questions, since the samples of a question
    are not independent. Unscored samples are ignored.
    """
    k = len(samples)
    wanted = _with_votes(metrics, normalise, k)
    rows = [row for sample in samples for row in sample]
    return report_on(rows, lambda some: _figures(_by_question(some), wanted, resamples))


def _by_question(rows: Sequence[ScoredTrajectory]) -> list[list[Trajectory]]:
    """The samples of each question."""
    groups: dict[str, list[Trajectory]] = defaultdict(list)
    for row in rows:
        groups[row.trajectory.question.id].append(row.trajectory)
    return list(groups.values())


def majority(answers: Answers, normalise: Callable[[str], str]) -> str | None:
    """The most common answer, as it was first written; None if no sample has one."""
    given = [answer for answer in answers if answer is not None]
    if not given:
        return None
    votes = Counter(normalise(answer) for answer in given)  # most_common keeps ties in order of first occurrence
    winner = votes.most_common(1)[0][0]
    return next(answer for answer in given if normalise(answer) == winner)


_GroupMetric = Callable[[Answers, Sequence[str]], float]


def _with_votes(
    metrics: Mapping[str, AnswerMetric], normalise: Callable[[str], str], k: int
) -> dict[str, _GroupMetric]:
    def mean_of(metric: AnswerMetric) -> _GroupMetric:
        return lambda answers, accepted: sum(metric(a, accepted) for a in answers) / len(answers)

    em = metrics["em"]
    return {
        **{name: mean_of(metric) for name, metric in metrics.items()},
        f"pass@{k}": lambda answers, accepted: max(em(a, accepted) for a in answers),
        f"majority@{k}": lambda answers, accepted: em(majority(answers, normalise), accepted),
    }


def _figures(
    groups: Sequence[Sequence[Trajectory]], metrics: Mapping[str, _GroupMetric], resamples: int
) -> AnswerFigures:
    kept = [group for group in groups if all(t.scorable for t in group)]  # pass@k needs all k samples
    values = {
        name: [metric([t.answer for t in group], group[0].question.answers) for group in kept]
        for name, metric in metrics.items()
    }
    return AnswerFigures(
        n=len(groups),
        scored=len(kept),
        means={name: sum(column) / len(column) if column else None for name, column in values.items()},
        intervals={name: mean_interval(column, resamples=resamples) for name, column in values.items() if column},
    )
