"""Unscored, one thing: what becomes of a trajectory when an environment, a reward or a retriever fails on it.

Its reward is None, it is counted, and the log names its question and the exception. Nothing else of the batch is lost.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from sleuth.errors import RetrieverError, ScoringError, SleuthError, first_line
from sleuth.types import Failure, Question, ScoredTrajectory, Trajectory

log = logging.getLogger("sleuth.unscored")
Score = Callable[[Sequence[Trajectory]], Sequence[ScoredTrajectory]]
"""Scores a batch at a time."""
_LONGEST = 300
"""Characters of a message that are kept beside the class of its exception."""


def ends_run(error: Exception) -> bool:
    """Whether ``error`` is one that the user must mend first, such as a wrong setting. Any other makes one trajectory
    unscored; so do a RetrieverError and a ScoringError, which say that themselves.
    """
    return isinstance(error, SleuthError) and not isinstance(error, RetrieverError | ScoringError)


def failure_of(by: str, error: Exception) -> Failure:
    """``error`` on record. A SleuthError has a message for users, so its traceback is left out."""
    name, message = type(error).__name__, first_line(error)
    said = name if message == name else f"{name}: {message[:_LONGEST]}"
    trace = "" if isinstance(error, SleuthError) else "".join(traceback.format_exception(error))
    return Failure(by, said, trace)


def unscored(trajectory: Trajectory, failure: Failure) -> ScoredTrajectory:
    return ScoredTrajectory(replace(trajectory, failure=failure), None)


def scored_by(score: Score, trajectories: Sequence[Trajectory]) -> list[ScoredTrajectory]:
    """The results of ``score``, in order. What it raises on, or gives a reward that is not finite, is unscored.

    If it raises on several together, each is scored alone.
    """
    try:
        scored = list(score(trajectories))
        if len(scored) != len(trajectories):
            raise ValueError(f"{len(scored)} results for {len(trajectories)} trajectories")
    except Exception as error:  # rewards are anybody's code
        if ends_run(error):
            raise
        if len(trajectories) == 1:
            return [unscored(trajectories[0], failure_of("the scorer", error))]
        return [one for trajectory in trajectories for one in scored_by(score, [trajectory])]
    return [_finite(one) for one in scored]


def _finite(scored: ScoredTrajectory) -> ScoredTrajectory:
    reward = scored.reward
    if reward is None or (isinstance(reward, int | float) and math.isfinite(reward)):
        return scored
    return unscored(scored.trajectory, failure_of("the scorer", ValueError(f"the reward is {reward!r}")))


class FailureLog:
    """Logs failures with their questions: the first of a kind whole, with its traceback, later ones in one line.

    A kind is what failed and the class of the exception.
    """

    def __init__(self) -> None:
        self._seen: set[tuple[str, str]] = set()

    def note(self, trajectory: Trajectory) -> None:
        """Log why ``trajectory`` failed, if it did."""
        failure = trajectory.failure
        if failure is None:
            return
        kind = (failure.by, failure.error.partition(":")[0])
        trace = f"\n{failure.trace.rstrip()}" if kind not in self._seen and failure.trace else ""
        self._seen.add(kind)
        log.warning("%s", _printable(f"{named(trajectory.question)} is unscored: {failure}{trace}"))


def cause(trajectory: Trajectory) -> str:
    """Why ``trajectory``, which is unscored, is; an older one that failed says only how it ended."""
    if trajectory.failure:
        return trajectory.failure.by
    return "no reward applies" if trajectory.scorable else trajectory.stop


def causes(counts: Mapping[str, int]) -> str:
    """Numbers of unscored trajectories by `cause`, as one phrase."""
    return ", ".join(f"{by}: {count}" for by, count in counts.items())


def _printable(text: str) -> str:
    """A message may quote a passage, which could steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


def named(question: Question) -> str:
    """A question by its id and its file, if that is known."""
    return f"question '{question.id}'" + (f" of {question.file}" if question.file else "")
