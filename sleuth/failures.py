"""Unscored, one thing: what becomes of a trajectory when an environment, a reward or a retriever fails on it.

Its reward is None, it is counted, and the log names its question and the exception. Nothing else of the batch is lost.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace

from sleuth.errors import RetrieverError, SleuthError, first_line
from sleuth.types import Failure, Question, ScoredTrajectory, Trajectory

log = logging.getLogger("sleuth.unscored")
_LONGEST = 300
"""Characters of a message that are kept beside the class of its exception."""


def ends_run(error: Exception) -> bool:
    """Whether ``error`` is one that the user must mend first, such as a wrong setting. Any other makes one trajectory
    unscored; so does a RetrieverError, which says that itself.
    """
    return isinstance(error, SleuthError) and not isinstance(error, RetrieverError)


def failure_of(by: str, error: Exception) -> Failure:
    """``error`` on record. A SleuthError has a message for users, so its traceback is left out."""
    name, message = type(error).__name__, first_line(error)
    said = name if message == name else f"{name}: {message[:_LONGEST]}"
    trace = "" if isinstance(error, SleuthError) else "".join(traceback.format_exception(error))
    return Failure(by, said, trace)


def unscored(trajectory: Trajectory, failure: Failure) -> ScoredTrajectory:
    return ScoredTrajectory(replace(trajectory, failure=failure), None)


def scored_by(score: Callable[[Trajectory], ScoredTrajectory], trajectory: Trajectory) -> ScoredTrajectory:
    """The result of ``score``; unscored if that raises or gives a reward that is not finite."""
    try:
        scored = score(trajectory)
        if scored.reward is not None and not math.isfinite(scored.reward):
            raise ValueError(f"the reward is {scored.reward}")
    except Exception as error:  # rewards are anybody's code
        if ends_run(error):
            raise
        return unscored(trajectory, failure_of("the scorer", error))
    return scored


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
