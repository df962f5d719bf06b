"""What a listener hears while questions are played."""

from __future__ import annotations

from dataclasses import dataclass

from sleuth.types import Hit, Trajectory, Turn


@dataclass(frozen=True, slots=True)
class PassagesGiven:
    """Hits of a search that the environment made before the first turn."""

    episode: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class ThoughtOpen:
    """The turn that is about to be sampled begins inside a thought that is open already."""

    episode: str


@dataclass(frozen=True, slots=True)
class TokenSampled:
    """A token, at the moment it is sampled."""

    episode: str
    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TurnTaken:
    """A turn with the environment's response."""

    episode: str
    turn: Turn


@dataclass(frozen=True, slots=True)
class EpisodeEnded:
    episode: str
    trajectory: Trajectory


Event = PassagesGiven | ThoughtOpen | TokenSampled | TurnTaken | EpisodeEnded
