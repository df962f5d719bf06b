"""The rollout driver: from questions to trajectories, one round of all live episodes at a time.

A round is: generate to a stop string, parse the new turn, collect all searches into one batched and deduplicated
retriever call, append the observations. A stop string inside a thought ends no turn: more is sampled. With an
``AsyncPolicy``, episodes advance independently, without rounds. Training, evaluation, demonstrations and chat all use
this driver. Sampled tokens are appended as they were sampled, never re-encoded from text.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from agent.rollout_async import run_all
from sleuth.coalescer import Coalescer
from sleuth.errors import RetrieverError
from sleuth.failures import ends_run, failure_of
from sleuth.hits import distinct
from sleuth.protocols import (
    AsyncPolicy,
    Environment,
    OnToken,
    Policy,
    Retriever,
    TextCodec,
    ThinkingEnvironment,
)
from sleuth.seeding import derive_seed
from sleuth.types import (
    Action,
    Answer,
    Failure,
    Generation,
    Hit,
    Invalid,
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


@dataclass(slots=True)
class _Episode:
    id: str
    question: Question
    seed: int
    environment: Environment = field(init=False)
    budget: int = 0
    segments: list[Segment] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    length: int = 0
    said: Generation | None = None
    """What was sampled of a turn that is not over."""
    pending: Search | None = None
    given: tuple[Hit, ...] = ()
    stop: StopReason | None = None
    failure: Failure | None = None
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


class RolloutDriver:
    """Plays questions through an environment with a policy and a retriever.

    ``environment`` makes a new state machine for each episode; ``retriever`` may be None if the environment never
    searches. If the retriever or an environment fails, its episodes end unscored, not with reward zero, and the others
    go on; only errors that the user must mend, such as a ConfigError, are raised.
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
        """One trajectory per question, in order. The same seeds give the same trajectories."""
        emit = on_event or _ignore
        episodes = [
            _Episode(f"{question.id}#{next(self._serial)}", question, seed)
            for question, seed in zip(questions, seeds or range(len(questions)), strict=True)
        ]
        try:
            self._open(episodes, emit)
            if isinstance(self.policy, AsyncPolicy) and len(episodes) > 1:
                self._play_each(self.policy, [e for e in episodes if e.stop is None], sampling, emit)
            while live := [e for e in episodes if e.stop is None]:
                self._round(live, sampling, emit)
        finally:
            self.policy.release([e.id for e in episodes])
        trajectories = [_close(e) for e in episodes]
        for episode, trajectory in zip(episodes, trajectories, strict=True):
            emit(EpisodeEnded(episode.id, trajectory))
        return trajectories

    def _open(self, episodes: Sequence[_Episode], emit: Callable[[Event], None]) -> None:
        """Append each prompt, searching first if the environment asks for it."""
        waiting: list[_Episode] = []
        for episode in episodes:
            with episode.playing():
                episode.environment = self.environment()
                first = episode.environment.reset(episode.question)
                if isinstance(first, Search):
                    episode.pending = first
                    waiting.append(episode)
                else:
                    self._insert(episode, Segment("prompt", first.token_ids), "prompt_too_long")
        for episode, hits in self._retrieve(waiting):
            episode.given = tuple(hits)
            emit(PassagesGiven(episode.id, episode.given))
            with episode.playing():
                prompt = episode.environment.observe(hits, episode.room)
                if isinstance(prompt, Stop):
                    episode.stop = prompt.reason
                else:
                    self._insert(episode, Segment("prompt", prompt.token_ids), "prompt_too_long")

    def _insert(self, episode: _Episode, segment: Segment, full: StopReason) -> None:
        """Append what the environment says; the episode ends with ``full`` if no room is left for a turn."""
        episode.append(segment)
        episode.budget = episode.environment.turn_tokens(episode.room)
        if episode.budget < 1:
            episode.stop = full

    def _round(self, live: Sequence[_Episode], sampling: Sampling, emit: Callable[[Event], None]) -> None:
        speaking = list(live)
        while speaking:
            generations = self._generate(speaking, sampling, emit)
            speaking = [e for e, said in zip(speaking, generations, strict=True) if not self._over(e, said)]
        turns = {e.id: self._take(e) for e in live}
        found: dict[str, list[Hit]] = {
            episode.id: hits for episode, hits in self._retrieve([e for e in live if e.pending])
        }
        for episode in live:
            self._settle(episode, turns[episode.id], found.get(episode.id), emit)

    def _play_each(
        self, policy: AsyncPolicy, live: Sequence[_Episode], sampling: Sampling, emit: Callable[[Event], None]
    ) -> None:
        """Play the episodes independently to their ends; concurrent searches are still batched."""
        searches = Coalescer(self._retrieve_each)
        before = [dict(e.timings) for e in live]
        started = time.perf_counter()
        try:
            run_all([self._advance(policy, episode, searches, sampling, emit) for episode in live])
        finally:
            searches.close()
        _fit(live, before, time.perf_counter() - started)

    async def _advance(
        self,
        policy: AsyncPolicy,
        episode: _Episode,
        searches: Coalescer[_Episode, list[Hit] | None],
        sampling: Sampling,
        emit: Callable[[Event], None],
    ) -> None:
        chosen = replace(sampling, stop=episode.environment.stop_strings)
        while episode.stop is None:
            started = time.perf_counter()
            _announce(episode, emit)
            while not self._over(episode, await policy.generate_one(_request(episode), chosen, _token_listener(emit))):
                pass
            _divide_time([episode], "generate", time.perf_counter() - started)
            turn = self._take(episode)
            self._settle(episode, turn, await searches.ask_async(episode) if episode.pending else None, emit)

    def _over(self, episode: _Episode, generation: Generation) -> bool:
        """Add what was sampled to the turn, and say whether the turn is over."""
        said = episode.said = _together(episode.said, generation)
        if not isinstance(episode.environment, ThinkingEnvironment):
            return True
        over = True  # also where the environment fails
        with episode.playing():
            over = episode.environment.over(self.codec.decode(said.token_ids), said)
        if over or _turn_room(episode) > 0:
            return over
        episode.said = replace(said, finish_reason="length")
        return True

    def _take(self, episode: _Episode) -> Turn:
        """Append the sampled tokens and parse the turn."""
        generation, episode.said = episode.said, None
        assert generation is not None
        thinking = _thinking(episode)
        text = self.codec.decode(generation.token_ids)
        action: Action = Invalid("the environment failed")
        with episode.playing():
            action = episode.environment.step(text)
        episode.append(Segment("policy", generation.token_ids, generation.logprobs))
        episode.pending = action if isinstance(action, Search) else None
        return Turn(generation, text, action, thinking=thinking)

    def _settle(self, episode: _Episode, turn: Turn, hits: list[Hit] | None, emit: Callable[[Event], None]) -> None:
        """End the turn with the environment's response."""
        if isinstance(turn.action, Answer):
            episode.stop = "answer"
        elif episode.stop is None:
            turn = replace(turn, hits=tuple(hits or ()))
            with episode.playing():
                turn = self._observe(episode, turn, hits)
        episode.turns.append(turn)
        emit(TurnTaken(episode.id, turn))

    def _generate(
        self, live: Sequence[_Episode], sampling: Sampling, emit: Callable[[Event], None]
    ) -> list[Generation]:
        requests = [_request(episode) for episode in live]
        for episode in live:
            _announce(episode, emit)
        stops = live[0].environment.stop_strings
        started = time.perf_counter()
        generations = self.policy.generate(
            requests,
            replace(sampling, stop=stops),
            on_token=_token_listener(emit),
        )
        _divide_time(live, "generate", time.perf_counter() - started)
        return generations

    def _retrieve(self, waiting: Sequence[_Episode]) -> list[tuple[_Episode, list[Hit]]]:
        """Hits for every waiting episode from one call; if it fails, the episodes end unscored."""
        queries = [e.pending.query for e in waiting if e.pending]
        unique = list(dict.fromkeys(queries))
        if not unique:
            return []
        started = time.perf_counter()
        try:
            if self.retriever is None:
                raise RetrieverError("the environment searches, but no retriever is configured")
            found = self.retriever.search(unique, self.top_k)
            answers = dict(zip(unique, map(distinct, found), strict=True))
        except Exception as error:  # retrievers are anybody's code too
            if ends_run(error):
                raise
            for episode in waiting:
                episode.stop, episode.failure = "retriever_failed", failure_of("the retriever", error)
            return []
        finally:
            _divide_time(waiting, "retrieve", time.perf_counter() - started)
        return [(episode, answers[query]) for episode, query in zip(waiting, queries, strict=True)]

    def _retrieve_each(self, waiting: Sequence[_Episode]) -> list[list[Hit] | None]:
        """Like ``_retrieve``, with None for failed searches."""
        found = {episode.id: hits for episode, hits in self._retrieve(waiting)}
        return [found.get(episode.id) for episode in waiting]

    def _observe(self, episode: _Episode, turn: Turn, hits: list[Hit] | None) -> Turn:
        """Append the environment's observation, or end the episode; returns the completed turn."""
        seen = episode.environment.observe(hits, episode.room)
        if isinstance(seen, Stop):
            episode.stop = seen.reason
            return turn
        self._insert(episode, Segment("environment", seen.token_ids), "token_budget")
        return replace(turn, observation=seen.text)


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
        episode.failure,
    )


def _request(episode: _Episode) -> Request:
    """The next turn, or the rest of one that is not over: a seed of its own, and what is left of its budget."""
    turn, said = len(episode.turns), episode.said.token_ids if episode.said else ()
    seed = derive_seed(episode.seed, turn, len(said)) if said else derive_seed(episode.seed, turn)
    thinking = bool(said) or _thinking(episode)  # a turn goes on inside a thought only
    return Request(episode.id, [*episode.prefix, *said], _turn_room(episode), seed, thinking)


def _turn_room(episode: _Episode) -> int:
    """How many more tokens the current turn may sample."""
    said = len(episode.said.token_ids) if episode.said else 0
    return episode.budget - said


def _thinking(episode: _Episode) -> bool:
    return isinstance(episode.environment, ThinkingEnvironment) and episode.environment.thinking


def _announce(episode: _Episode, emit: Callable[[Event], None]) -> None:
    if episode.said is None and _thinking(episode):
        emit(ThoughtOpen(episode.id))


def _together(before: Generation | None, after: Generation) -> Generation:
    """One generation sampled in two parts; its version is that of the older weights."""
    if before is None:
        return after
    version = min(before.policy_version, after.policy_version)
    ids, logprobs = before.token_ids + after.token_ids, before.logprobs + after.logprobs
    return Generation(ids, logprobs, after.finish_reason, version)


def _token_listener(emit: Callable[[Event], None]) -> OnToken | None:
    return None if emit is _ignore else lambda *token: emit(TokenSampled(*token))


def _fit(episodes: Sequence[_Episode], before: Sequence[Mapping[str, float]], wall: float) -> None:
    """Scale the timings that overlapping episodes have added so that they sum to the wall time."""
    added = sum(e.timings[stage] - old[stage] for e, old in zip(episodes, before, strict=True) for stage in old)
    for episode, old in zip(episodes, before, strict=True):
        for stage in old:
            spent = episode.timings[stage] - old[stage]
            episode.timings[stage] = old[stage] + spent * wall / max(added, 1e-9)


def _divide_time(episodes: Sequence[_Episode], stage: str, seconds: float) -> None:
    """Divide a batch's wall time equally among its episodes."""
    for episode in episodes:
        episode.timings[stage] += seconds / len(episodes)


def _ignore(_event: Event) -> None:
    return None
