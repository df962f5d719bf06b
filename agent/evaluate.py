"""Evaluation: play every question once, greedily, save the trajectories, and report the policy's metrics.

The rollout driver is the one used in training. Trajectories are appended as they end, so a killed evaluation
resumes where it stopped. Answer metrics are passed in as functions.

A question on which the retriever, the environment or a reward failed is *unscored*: it counts in ``n`` but not in
``scored``; means are over ``scored``. The log names it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from sleuth.artifacts import atomic_write
from sleuth.errors import DataError
from sleuth.evidence import titles_found
from sleuth.failures import FailureLog, cause, scored_by
from sleuth.layout import EvaluationLayout, write_record
from sleuth.statistics import Interval, mean_interval
from sleuth.trajectories import TrajectoryWriter, read_trajectories, to_line
from sleuth.types import Invalid, Question, Sampling, ScoredTrajectory, Trajectory

GREEDY = Sampling(temperature=0.0)

AnswerMetric = Callable[[str | None, Sequence[str]], float]
"""(prediction, accepted answers) -> value; a missing prediction is None."""
Score = Callable[[Sequence[Trajectory]], Sequence[ScoredTrajectory]]
"""A batch at a time, so that a reward that asks a server can ask for all of it at once."""


class Driver(Protocol):
    """The part of ``RolloutDriver`` that evaluation uses."""

    def run(
        self, questions: Sequence[Question], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[Trajectory]: ...


@dataclass(frozen=True, slots=True)
class AnswerFigures:
    """Mean of every answer metric over ``scored`` questions, and its 95 % interval."""

    n: int
    scored: int
    means: Mapping[str, float | None]
    intervals: Mapping[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        intervals = {f"{name}_interval": [found.low, found.high] for name, found in self.intervals.items()}
        methods = {name: found.method for name, found in self.intervals.items()}
        return {**self.means, **intervals, "interval_methods": methods, "n": self.n, "scored": self.scored}


@dataclass(frozen=True, slots=True)
class SearchFigures:
    """Supporting titles among the hits, over the ``questions`` that name supporting titles and were scored.

    ``recall``: mean fraction of a question's titles that were found; ``all_found``: fraction of questions with all.
    """

    questions: int
    recall: float | None
    all_found: float | None


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Means are over the scored trajectories; None if there are none.

    ``invalid_turns`` is a fraction of all turns, ``failed_calls`` of the ``calls`` of tools besides search. ``tokens``
    are per question, ``policy_tokens`` those sampled. ``seconds`` sums each stage over all episodes, including those
    played before a resume. ``failures`` counts the unscored ones by what failed.
    """

    overall: AnswerFigures
    by_kind: Mapping[str, AnswerFigures]
    searches: float | None
    answered: float | None
    invalid_turns: float | None
    supporting_titles: SearchFigures
    tokens: float | None
    policy_tokens: float | None
    reward: float | None
    stops: Mapping[str, int]
    seconds: Mapping[str, float] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    calls: float | None = None
    failed_calls: float | None = None

    @property
    def unscored(self) -> int:
        return self.overall.n - self.overall.scored

    def to_dict(self) -> dict[str, Any]:
        """The content of ``metrics.json``; the answer metrics (em, f1, ...) come first."""
        rest = asdict(self)
        del rest["overall"]
        by_kind = {kind: figures.to_dict() for kind, figures in self.by_kind.items()}
        return {**self.overall.to_dict(), "unscored": self.unscored, **rest, "by_kind": by_kind}


def evaluate(
    driver: Driver,
    questions: Sequence[Question],
    *,
    metrics: Mapping[str, AnswerMetric],
    score: Score | None = None,
    out: str | Path | None = None,
    sampling: Sampling = GREEDY,
    batch_size: int = 32,
    seed: int = 0,
    resamples: int = 10_000,
    on_progress: Callable[[int, int], None] | None = None,
    failures: FailureLog | None = None,
) -> EvaluationReport:
    """Answer every question and report. With ``out``, trajectories, predictions.json and metrics.json are saved there.

    Questions that already have a trajectory in ``out`` are not played again; the caller ensures that the settings
    were the same (``RunFolder.claim``). ``on_progress`` gets (done, total). ``failures`` logs what could not be scored,
    for several evaluations as for one. Raises DataError if there are no questions, for repeated ids, and for
    trajectories of other questions in ``out``.
    """
    failures = failures or FailureLog()
    _check_questions(questions)
    kept = EvaluationLayout(Path(out)) if out is not None else None
    done = _done_before(kept.trajectories, questions) if kept else {}
    missing = [(position, question) for position, question in enumerate(questions) if question.id not in done]
    keep = TrajectoryWriter(kept.trajectories) if kept else None
    try:
        for start in range(0, len(missing), batch_size):
            if on_progress:
                on_progress(len(done), len(questions))
            batch = missing[start : start + batch_size]
            seeds = [seed + position for position, _ in batch]
            trajectories = driver.run([question for _, question in batch], sampling, seeds)
            plain = [ScoredTrajectory(trajectory, None) for trajectory in trajectories]
            for scored in scored_by(score, trajectories) if score else plain:
                failures.note(scored.trajectory)
                done[scored.trajectory.question.id] = scored
                if keep:
                    keep.write(scored)
    finally:
        if keep:
            keep.close()
    if on_progress:
        on_progress(len(done), len(questions))
    ordered = [done[question.id] for question in questions]
    report = summarise(ordered, metrics, resamples)
    if kept:
        write_record(kept.predictions, predictions(ordered))
        write_record(kept.metrics, report.to_dict())
    return report


def summarise(
    rows: Sequence[ScoredTrajectory], metrics: Mapping[str, AnswerMetric], resamples: int = 10_000
) -> EvaluationReport:
    """The report on played trajectories, one per question; ``resamples`` are the bootstrap's."""
    scored = [row for row in rows if row.trajectory.scorable]
    played = [row.trajectory for row in scored]
    turns = [turn for trajectory in played for turn in trajectory.turns]
    kinds: dict[str, list[ScoredTrajectory]] = defaultdict(list)
    for row in rows:
        kinds[row.trajectory.question.kind].append(row)
    seconds: Counter[str] = Counter()
    for row in rows:
        seconds.update(row.trajectory.timings)
    return EvaluationReport(
        overall=_answer_figures(rows, metrics, resamples),
        by_kind={kind: _answer_figures(kinds[kind], metrics, resamples) for kind in sorted(kinds) if kind},
        searches=_mean(len(t.queries) for t in played),
        answered=_mean(t.answer is not None for t in played),
        invalid_turns=_mean(isinstance(turn.action, Invalid) for turn in turns),
        supporting_titles=_search_figures(played),
        tokens=_mean(len(t.token_ids) for t in played),
        policy_tokens=_mean(sum(t.policy_mask) for t in played),
        reward=_mean(row.reward for row in scored if row.reward is not None),
        stops=dict(Counter(row.trajectory.stop for row in rows).most_common()),
        seconds=dict(seconds),
        failures=dict(Counter(cause(row.trajectory) for row in rows if not row.trajectory.scorable).most_common()),
        calls=_mean(len(t.calls) for t in played),
        failed_calls=_mean(bool(turn.failure) for t in played for turn in t.calls),
    )


def predictions(rows: Iterable[ScoredTrajectory]) -> dict[str, dict[str, Any]]:
    """Answers in HotpotQA's format; a question without an answer is left out, which its script counts as 0."""
    answers = ((row.trajectory.question.id, row.trajectory.answer) for row in rows)
    return {"answer": {identity: text for identity, text in answers if text is not None}, "sp": {}}


def _check_questions(questions: Sequence[Question]) -> None:
    if not questions:
        raise DataError("there are no questions to evaluate", "is the file empty, or --limit 0?")
    repeated = [identity for identity, count in Counter(q.id for q in questions).items() if count > 1]
    if repeated:
        raise DataError(f"question id '{repeated[0]}' occurs more than once", "make the ids unique")


def _done_before(file: Path, questions: Sequence[Question]) -> dict[str, ScoredTrajectory]:
    """Trajectories saved by an earlier run of this evaluation; unscored ones are dropped, to be played again."""
    if not file.exists():
        return {}
    TrajectoryWriter(file).close()  # drops an incomplete last line
    unscored = 0
    asked = {question.id: question for question in questions}
    done: dict[str, ScoredTrajectory] = {}
    for row in read_trajectories(file):
        question = row.trajectory.question
        if not _same(asked.get(question.id), question):
            raise DataError(
                f"{file} holds question '{question.id}', which is not among these questions",
                "use another --out for other questions",
            )
        if row.trajectory.scorable:
            done[question.id] = replace(row, trajectory=replace(row.trajectory, question=asked[question.id]))
        else:
            unscored += 1
    if unscored:
        atomic_write(file, "".join(to_line(row) for row in done.values()))
    return done


def _same(asked: Question | None, played: Question) -> bool:
    """Whether both ask the same. What else is known of a question may have grown since it was played."""
    return asked is not None and (asked.text, asked.answers) == (played.text, played.answers)


def _answer_figures(
    rows: Sequence[ScoredTrajectory], metrics: Mapping[str, AnswerMetric], resamples: int
) -> AnswerFigures:
    scored = [row.trajectory for row in rows if row.trajectory.scorable]
    values = {name: [metric(t.answer, t.question.answers) for t in scored] for name, metric in metrics.items()}
    return AnswerFigures(
        n=len(rows),
        scored=len(scored),
        means={name: _mean(column) for name, column in values.items()},
        intervals={name: mean_interval(column, resamples=resamples) for name, column in values.items() if column},
    )


def _search_figures(played: Sequence[Trajectory]) -> SearchFigures:
    titles = [titles_found(trajectory.question, trajectory.hits) for trajectory in played]
    recalls = [found / wanted for found, wanted in titles if wanted]
    return SearchFigures(len(recalls), _mean(recalls), _mean(recall == 1.0 for recall in recalls))


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None
