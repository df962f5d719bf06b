"""The rollout driver: from questions to trajectories, one round of all live episodes at a time.

A round is: generate to a stop string, parse the new turn only, gather every search into one batched
and deduplicated retriever call, append the observations. Training, evaluation, demonstrations and
chat all go through here. What the policy sampled is appended as the tokens it sampled; nothing is
ever encoded again from text.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from sleuth.errors import RetrieverError
from sleuth.protocols import Environment, Policy, Retriever, TextCodec
from sleuth.seeding import derive_seed
from sleuth.types import (
    Action,
    Answer,
    Generation,
    Hit,
    Observation,
    Question,
    Request,
    Sampling,
    Search,
    Segment,
    Stop,
    StopReason,
    Trajectory,
    Turn,
)


@dataclass(frozen=True, slots=True)
class PassagesGiven:
    """Hits of a search that the environment made before the first turn."""

    episode: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class TokenSampled:
    """One token at the moment it was sampled."""

    episode: str
    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TurnTaken:
    """A turn with what came back for it."""

    episode: str
    turn: Turn


@dataclass(frozen=True, slots=True)
class EpisodeEnded:
    episode: str
    trajectory: Trajectory


Event = PassagesGiven | TokenSampled | TurnTaken | EpisodeEnded


@dataclass(slots=True)
class _Episode:
    id: str
    question: Question
    seed: int
    environment: Environment
    segments: list[Segment] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    length: int = 0
    pending: Search | None = None
    given: tuple[Hit, ...] = ()
    stop: StopReason | None = None
    timings: dict[str, float] = field(default_factory=lambda: {"generate": 0.0, "retrieve": 0.0})

    def append(self, segment: Segment) -> None:
        self.segments.append(segment)
        self.length += len(segment.token_ids)

    @property
    def prefix(self) -> list[int]:
        return [token for segment in self.segments for token in segment.token_ids]

    @property
    def room(self) -> int:
        return self.environment.total_tokens - self.length


class RolloutDriver:
    """Plays questions through an environment with a policy and a retriever.

    ``environment`` makes a fresh state machine for each episode; ``retriever`` may be None where the
    environment never searches. A retriever that fails ends its episodes unscored, never with zero.
    """

    def __init__(
        self,
        policy: Policy,
        codec: TextCodec,
        environment: Callable[[], Environment],
        retriever: Retriever | None,
        top_k: int,
    ) -> None:
        self.policy = policy
        self.codec = codec
        self.environment = environment
        self.retriever = retriever
        self.top_k = top_k
        self._serial = itertools.count()

    def run(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> list[Trajectory]:
        """One trajectory a question, in order. The same seeds give the same trajectories."""
        emit = on_event or _ignore
        episodes = [
            _Episode(f"{question.id}#{next(self._serial)}", question, seed, self.environment())
            for question, seed in zip(questions, seeds or range(len(questions)), strict=True)
        ]
        try:
            self._open(episodes, emit)
            while live := [e for e in episodes if e.stop is None]:
                self._round(live, sampling, emit)
        finally:
            self.policy.release([e.id for e in episodes])
        trajectories = [_close(e) for e in episodes]
        for episode, trajectory in zip(episodes, trajectories, strict=True):
            emit(EpisodeEnded(episode.id, trajectory))
        return trajectories

    def _open(self, episodes: Sequence[_Episode], emit: Callable[[Event], None]) -> None:
        """Put each prompt in place, searching first where the environment asks for it."""
        waiting: list[_Episode] = []
        for episode in episodes:
            opening = episode.environment.reset(episode.question)
            if isinstance(opening, Search):
                episode.pending = opening
                waiting.append(episode)
            else:
                self._place_prompt(episode, opening)
        for episode, hits in self._retrieve(waiting):
            episode.given = tuple(hits)
            emit(PassagesGiven(episode.id, episode.given))
            prompt = episode.environment.observe(hits, episode.room)
            if isinstance(prompt, Stop):
                episode.stop = prompt.reason
            else:
                self._place_prompt(episode, prompt)

    def _place_prompt(self, episode: _Episode, prompt: Observation) -> None:
        episode.append(Segment("prompt", prompt.token_ids))
        if episode.environment.turn_tokens(episode.room) < 1:
            episode.stop = "prompt_too_long"

    def _round(self, live: Sequence[_Episode], sampling: Sampling, emit: Callable[[Event], None]) -> None:
        taken: dict[str, tuple[Generation, str, Action]] = {}
        for episode, generation in zip(live, self._generate(live, sampling, emit), strict=True):
            text = self.codec.decode(generation.token_ids)
            action = episode.environment.step(text)
            episode.append(Segment("policy", generation.token_ids, generation.logprobs))
            episode.pending = action if isinstance(action, Search) else None
            taken[episode.id] = (generation, text, action)

        found: dict[str, list[Hit]] = {
            episode.id: hits for episode, hits in self._retrieve([e for e in live if e.pending])
        }
        for episode in live:
            generation, text, action = taken[episode.id]
            turn = Turn(generation, text, action)
            if isinstance(action, Answer):
                episode.stop = "answer"
            elif episode.stop is None:
                turn = self._observe(episode, turn, found.get(episode.id))
            episode.turns.append(turn)
            emit(TurnTaken(episode.id, turn))

    def _generate(
        self, live: Sequence[_Episode], sampling: Sampling, emit: Callable[[Event], None]
    ) -> list[Generation]:
        requests = [
            Request(e.id, e.prefix, e.environment.turn_tokens(e.room), derive_seed(e.seed, len(e.turns))) for e in live
        ]
        stops = live[0].environment.stop_strings
        started = time.perf_counter()
        generations = self.policy.generate(
            requests,
            replace(sampling, stop=stops),
            on_token=None if emit is _ignore else lambda *token: emit(TokenSampled(*token)),
        )
        _share(live, "generate", time.perf_counter() - started)
        return generations

    def _retrieve(self, waiting: Sequence[_Episode]) -> list[tuple[_Episode, list[Hit]]]:
        """Hits for every waiting episode from one call; on failure they end unscored instead."""
        queries = [e.pending.query for e in waiting if e.pending]
        unique = list(dict.fromkeys(queries))
        if not unique:
            return []
        started = time.perf_counter()
        try:
            if self.retriever is None:
                raise RetrieverError("the environment searches, but no retriever is configured")
            answers = dict(zip(unique, self.retriever.search(unique, self.top_k), strict=True))
        except RetrieverError:
            for episode in waiting:
                episode.stop = "retriever_failed"
            return []
        finally:
            _share(waiting, "retrieve", time.perf_counter() - started)
        return [(episode, answers[query]) for episode, query in zip(waiting, queries, strict=True)]

    def _observe(self, episode: _Episode, turn: Turn, hits: list[Hit] | None) -> Turn:
        """Append what the environment answers, or end the episode; the turn as it then stands."""
        seen = episode.environment.observe(hits, episode.room)
        kept = tuple(hits or ())
        if isinstance(seen, Stop):
            episode.stop = seen.reason
            return replace(turn, hits=kept)
        episode.append(Segment("environment", seen.token_ids))
        if episode.environment.turn_tokens(episode.room) < 1:
            episode.stop = "token_budget"
        return replace(turn, hits=kept, observation=seen.text)


def _close(episode: _Episode) -> Trajectory:
    assert episode.stop is not None
    assert episode.length == sum(len(s.token_ids) for s in episode.segments)
    return Trajectory(
        episode.question,
        tuple(episode.segments),
        tuple(episode.turns),
        episode.stop,
        dict(episode.timings),
        episode.given,
    )


def _share(episodes: Sequence[_Episode], stage: str, seconds: float) -> None:
    """Spread a batch's wall time over its episodes, so that their sum is the time that passed."""
    for episode in episodes:
        episode.timings[stage] += seconds / len(episodes)


def _ignore(_event: Event) -> None:
    return None
