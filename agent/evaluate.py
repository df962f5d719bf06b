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
from sleuth.evidence import By, golds_of
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


_Answers = Callable[[Sequence[ScoredTrajectory]], "AnswerFigures"]


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
    """Gold passages, or titles, among the hits, over the ``questions`` that list some and were scored.

    ``recall``: mean fraction of a question's golds that were found; ``all_found``: fraction of questions with all.
    ``by_id``: of how many questions they are known by id, of the others by title.
    """

    questions: int
    recall: float | None
    all_found: float | None
    by_id: int = 0


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """Of the questions of one kind, or of one pack and, if these are several, of each of its ``kinds``.

    ``gold``: of the questions that need all their gold passages; ``alternatives``: of those that need any one.
    """

    answers: AnswerFigures
    searches: float | None
    gold: SearchFigures
    alternatives: SearchFigures
    kinds: Mapping[str, GroupFigures] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        kinds = {kind: figures.to_dict() for kind, figures in self.kinds.items()}
        found = {"gold": asdict(self.gold), "alternatives": asdict(self.alternatives)}
        return {**self.answers.to_dict(), "searches": self.searches, **found, **({"by_kind": kinds} if kinds else {})}


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Means are over the scored trajectories; None if there are none.

    ``gold``: of questions that need all their gold passages; ``alternatives``: of those that need any one of them;
    ``supporting_titles``: as ``gold``, by title throughout.

    ``invalid_turns`` is a fraction of all turns, ``failed_calls`` of the ``calls`` of tools besides search. ``tokens``
    are per question, ``policy_tokens`` those sampled. ``seconds`` sums each stage over all episodes, including those
    played before a resume. ``failures`` counts the unscored ones by what failed.
    """

    overall: AnswerFigures
    by_kind: Mapping[str, GroupFigures]
    searches: float | None
    answered: float | None
    invalid_turns: float | None
    gold: SearchFigures
    alternatives: SearchFigures
    supporting_titles: SearchFigures
    tokens: float | None
    policy_tokens: float | None
    reward: float | None
    stops: Mapping[str, int]
    seconds: Mapping[str, float] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    calls: float | None = None
    failed_calls: float | None = None
    by_pack: Mapping[str, GroupFigures] = field(default_factory=dict)

    @property
    def unscored(self) -> int:
        return self.overall.n - self.overall.scored

    def to_dict(self) -> dict[str, Any]:
        """The content of ``metrics.json``; the answer metrics (em, f1, ...) come first."""
        rest = asdict(self)
        del rest["overall"]
        recalls = {"gold_recall": self.gold.recall, "alternatives_recall": self.alternatives.recall}
        groups = {
            name: {group: figures.to_dict() for group, figures in found.items()}
            for name, found in (("by_kind", self.by_kind), ("by_pack", self.by_pack))
        }
        return {**self.overall.to_dict(), "unscored": self.unscored, **recalls, **rest, **groups}


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
    missing = [(position, question) for position, question in enumerate(questions) if key_of(question) not in done]
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
                done[key_of(scored.trajectory.question)] = scored
                if keep:
                    keep.write(scored)
    finally:
        if keep:
            keep.close()
    if on_progress:
        on_progress(len(done), len(questions))
    ordered = [done[key_of(question)] for question in questions]
    report = summarise(ordered, metrics, resamples)
    if kept:
        write_record(kept.predictions, predictions(ordered))
        write_record(kept.metrics, report.to_dict())
    return report


def summarise(
    rows: Sequence[ScoredTrajectory], metrics: Mapping[str, AnswerMetric], resamples: int = 10_000
) -> EvaluationReport:
    """The report on played trajectories, one per question; ``resamples`` are the bootstrap's."""
    return report_on(rows, lambda some: _answer_figures(some, metrics, resamples))


def report_on(rows: Sequence[ScoredTrajectory], answers: _Answers) -> EvaluationReport:
    """The report on played trajectories; ``answers`` gives the answer metrics of some of them."""
    scored = [row for row in rows if row.trajectory.scorable]
    played = [row.trajectory for row in scored]
    turns = [turn for trajectory in played for turn in trajectory.turns]
    by_kind = _by(lambda question: question.kind, rows, answers)
    by_pack = _by(lambda question: question.pack, rows, answers)
    seconds: Counter[str] = Counter()
    for row in rows:
        seconds.update(row.trajectory.timings)
    return EvaluationReport(
        overall=answers(rows),
        by_kind={kind: figures for kind, (figures, _) in by_kind.items()},
        by_pack={pack: _with_kinds(figures, some, answers) for pack, (figures, some) in by_pack.items()},
        searches=_mean(len(t.queries) for t in played),
        answered=_mean(t.answer is not None for t in played),
        invalid_turns=_mean(isinstance(turn.action, Invalid) for turn in turns),
        gold=_search_figures(played, "auto", alternatives=False),
        alternatives=_search_figures(played, "auto", alternatives=True),
        supporting_titles=_search_figures(played, "title", alternatives=False),
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
    repeated = [key for key, count in Counter(map(key_of, questions)).items() if count > 1]
    if repeated:
        raise DataError(f"question id '{repeated[0][0]}' occurs more than once", "make the ids unique")


def key_of(question: Question) -> tuple[str, str]:
    """Id and text: files of different makers may have the same ids."""
    return question.id, question.text


def _done_before(file: Path, questions: Sequence[Question]) -> dict[tuple[str, str], ScoredTrajectory]:
    """Trajectories saved by an earlier run of this evaluation; unscored ones are dropped, to be played again."""
    if not file.exists():
        return {}
    TrajectoryWriter(file).close()  # drops an incomplete last line
    unscored = 0
    asked = {key_of(question): question for question in questions}
    done: dict[tuple[str, str], ScoredTrajectory] = {}
    for row in read_trajectories(file):
        question = row.trajectory.question
        if not _same(asked.get(key_of(question)), question):
            raise DataError(
                f"{file} holds question '{question.id}', which is not among these questions",
                "use another --out for other questions",
            )
        if row.trajectory.scorable:
            known = asked[key_of(question)]
            done[key_of(question)] = replace(row, trajectory=replace(row.trajectory, question=known))
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


def _by(
    group: Callable[[Question], str], rows: Sequence[ScoredTrajectory], answers: _Answers
) -> dict[str, tuple[GroupFigures, list[ScoredTrajectory]]]:
    """The figures and the rows of every group of questions that has a name, in order of name."""
    groups: dict[str, list[ScoredTrajectory]] = defaultdict(list)
    for row in rows:
        groups[group(row.trajectory.question)].append(row)
    return {name: (_group_figures(groups[name], answers), groups[name]) for name in sorted(groups) if name}


def _with_kinds(figures: GroupFigures, rows: Sequence[ScoredTrajectory], answers: _Answers) -> GroupFigures:
    kinds = _by(lambda question: question.kind, rows, answers)
    return replace(figures, kinds={kind: of for kind, (of, _) in kinds.items()}) if len(kinds) > 1 else figures


def _group_figures(rows: Sequence[ScoredTrajectory], answers: _Answers) -> GroupFigures:
    played = [row.trajectory for row in rows if row.trajectory.scorable]
    return GroupFigures(
        answers=answers(rows),
        searches=_mean(len(t.queries) for t in played),
        gold=_search_figures(played, "auto", alternatives=False),
        alternatives=_search_figures(played, "auto", alternatives=True),
    )


def _search_figures(played: Sequence[Trajectory], by: By, *, alternatives: bool) -> SearchFigures:
    """Over the questions whose golds are ``alternatives``, or over the others: means of both together say little."""
    of_sort = [trajectory for trajectory in played if trajectory.question.alternatives is alternatives]
    golds = [(golds_of(t.question, by), t) for t in of_sort]
    listed = [(gold, gold.found(t.hits)) for gold, t in golds if gold]
    recalls = [found / wanted for _, (found, wanted) in listed]
    by_id = sum(gold.by_id for gold, _ in listed)
    return SearchFigures(len(recalls), _mean(recalls), _mean(recall == 1.0 for recall in recalls), by_id)


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None
