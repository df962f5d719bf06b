"""One question on its way from the prompt to the end of its trajectory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sleuth.failures import ends_run, failure_of
from sleuth.pictures import Placed
from sleuth.protocols import Environment, ThinkingEnvironment
from sleuth.types import Call, Failure, Generation, Hit, Question, Search, Segment, StopReason, Turn


@dataclass(slots=True)
class Episode:
    """One question being played; ``budget`` is how many tokens its next turn may sample."""

    id: str
    question: Question
    seed: int
    environment: Environment = field(init=False)
    budget: int = 0
    segments: list[Segment] = field(default_factory=list)
    images: list[Placed] = field(default_factory=list)
    """The pictures that the segments show."""
    turns: list[Turn] = field(default_factory=list)
    length: int = 0
    said: Generation | None = None
    """What was sampled of a turn that is not over."""
    text: str = ""
    """What the policy said in the turn that it took last."""
    pending: Search | Call | None = None
    given: tuple[Hit, ...] = ()
    stop: StopReason | None = None
    failure: Failure | None = None
    timings: dict[str, float] = field(default_factory=lambda: {"generate": 0.0, "retrieve": 0.0})

    def append(self, segment: Segment, images: Sequence[Placed] = ()) -> None:
        """``images``: what the segment shows, counted from its first token."""
        self.segments.append(segment)
        self.images += [(self.length + start, image) for start, image in images]
        self.length += len(segment.token_ids)

    @property
    def prefix(self) -> list[int]:
        return [token for segment in self.segments for token in segment.token_ids]

    @property
    def room(self) -> int:
        return self.environment.total_tokens - self.length

    @property
    def turn_room(self) -> int:
        """How many more tokens the current turn may sample."""
        return self.budget - (len(self.said.token_ids) if self.said else 0)

    @property
    def thinking(self) -> bool:
        """Whether a thought is open where the next turn begins."""
        found = [False]  # also where the environment fails
        with self.playing():
            found.append(isinstance(self.environment, ThinkingEnvironment) and self.environment.thinking)
        return found[-1]

    @contextmanager
    def playing(self) -> Iterator[None]:
        """For calls of the environment, which may be anybody's code: if it raises, the episode ends unscored."""
        try:
            yield
        except Exception as error:
            if ends_run(error):
                raise
            self.stop, self.failure = "environment_failed", failure_of("the environment", error)
            self.pending = None


def together(before: Generation | None, after: Generation) -> Generation:
    """One generation sampled in two parts; its version is that of the older weights."""
    if before is None:
        return after
    version = min(before.policy_version, after.policy_version)
    ids, logprobs = before.token_ids + after.token_ids, before.logprobs + after.logprobs
    return Generation(ids, logprobs, after.finish_reason, version)
