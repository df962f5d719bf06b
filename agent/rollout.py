"""The rollout driver: from questions to trajectories, one round of all live episodes at a time.

A round is: generate to a stop string, parse the new turn, collect all searches into one batched and deduplicated
retriever call, make the calls of other tools, append the observations. A stop string inside a thought ends no turn:
more is sampled. With an ``AsyncPolicy``, episodes advance independently, without rounds. Training, evaluation,
demonstrations and chat all use this driver. Sampled tokens are appended as they were sampled, never re-encoded.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from agent.episode import Episode, together
from agent.events import EpisodeEnded, Event, PassagesGiven, ThoughtOpen, TokenSampled, TurnTaken
from agent.rollout_async import run_all
from agent.searching import look_up, lookup_of
from agent.tools import ToolBox
from sleuth.coalescer import Coalescer
from sleuth.errors import ConfigError, RetrieverError
from sleuth.failures import ends_run, failure_of
from sleuth.protocols import (
    AsyncPolicy,
    Environment,
    OnToken,
    Policy,
    Retriever,
    TextCodec,
    ThinkingEnvironment,
    ToolEnvironment,
)
from sleuth.query_forms import form_of
from sleuth.seeding import derive_seed
from sleuth.types import (
    Action,
    Answer,
    Call,
    Generation,
    Hit,
    Invalid,
    Observation,
    Question,
    Request,
    Sampling,
    Search,
    Segment,
    Source,
    Stop,
    StopReason,
    ToolAnswer,
    Trajectory,
    Turn,
)

Found = list[list[Hit]]
"""The hits of every query of a search."""
Response = Found | ToolAnswer
"""What comes back to a turn that searched or called."""


class RolloutDriver:
    """Plays questions through an environment with a policy and a retriever.

    ``environment`` makes a new state machine for each episode; ``retriever`` may be None if the environment never
    searches. If the retriever or an environment fails, its episodes end unscored, not with reward zero, and the others
    go on; only errors that the user must mend, such as a ConfigError, are raised. ``tools`` makes the other calls.
    """

    def __init__(
        self,
        policy: Policy,
        codec: TextCodec,
        environment: Callable[[], Environment],
        retriever: Retriever | None,
        top_k: int,
        tools: ToolBox | None = None,
    ) -> None:
        self.policy = policy
        self.codec = codec
        self.environment = environment
        self.retriever = retriever
        self.top_k = top_k
        self.tools = tools
        self._form = form_of(retriever)
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
            Episode(f"{question.id}#{next(self._serial)}", question, seed)
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

    def _open(self, episodes: Sequence[Episode], emit: Callable[[Event], None]) -> None:
        """Append each prompt, searching first if the environment asks for it."""
        waiting: list[Episode] = []
        for episode in episodes:
            with episode.playing():
                episode.environment = self.environment()
                first = episode.environment.reset(episode.question)
                if isinstance(first, Search):
                    episode.pending = first
                    waiting.append(episode)
                else:
                    self._insert(episode, "prompt", first, "prompt_too_long")
        for episode, found in self._retrieve(waiting):
            episode.given = tuple(hit for hits in found for hit in hits)
            emit(PassagesGiven(episode.id, episode.given))
            with episode.playing():
                prompt = episode.environment.observe(episode.given, episode.room)
                if isinstance(prompt, Stop):
                    episode.stop = prompt.reason
                else:
                    self._insert(episode, "prompt", prompt, "prompt_too_long")

    def _insert(self, episode: Episode, source: Source, seen: Observation, full: StopReason) -> None:
        """Append what the environment says; the episode ends with ``full`` if no room is left for a turn."""
        episode.append(Segment(source, seen.token_ids), seen.images)
        episode.budget = episode.environment.turn_tokens(episode.room)
        if episode.budget < 1:
            episode.stop = full

    def _round(self, live: Sequence[Episode], sampling: Sampling, emit: Callable[[Event], None]) -> None:
        speaking = list(live)
        while speaking:
            generations = self._generate(speaking, sampling, emit)
            speaking = [e for e, said in zip(speaking, generations, strict=True) if not self._over(e, said)]
        turns = {e.id: self._take(e) for e in live}
        answers: dict[str, Response] = {
            episode.id: found for episode, found in self._retrieve([e for e in live if isinstance(e.pending, Search)])
        }
        answers |= {episode.id: answer for episode, answer in self._call(live)}
        for episode in live:
            self._settle(episode, turns[episode.id], answers.get(episode.id), emit)

    def _play_each(
        self, policy: AsyncPolicy, live: Sequence[Episode], sampling: Sampling, emit: Callable[[Event], None]
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
        episode: Episode,
        searches: Coalescer[Episode, Found | None],
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
            answer: Response | None = None
            if isinstance(episode.pending, Search):
                answer = await searches.ask_async(episode)
            elif episode.pending is not None:
                ((_, answer),) = await asyncio.to_thread(self._call, [episode])
            self._settle(episode, turn, answer, emit)

    def _over(self, episode: Episode, generation: Generation) -> bool:
        """Add what was sampled to the turn, and say whether the turn is over."""
        said = episode.said = together(episode.said, generation)
        over = True  # also where the environment fails, or knows no thoughts
        with episode.playing():
            if isinstance(episode.environment, ThinkingEnvironment):
                over = episode.environment.over(self.codec.decode(said.token_ids), said)
        if over or episode.turn_room > 0:
            return over
        episode.said = replace(said, finish_reason="length")
        return True

    def _take(self, episode: Episode) -> Turn:
        """Append the sampled tokens and parse the turn."""
        generation, episode.said = episode.said, None
        assert generation is not None
        thinking = episode.thinking
        text = episode.text = self.codec.decode(generation.token_ids)
        action: Action = Invalid("the environment failed")
        with episode.playing():
            if episode.stop is None:
                action = episode.environment.step(text)
        episode.append(Segment("policy", generation.token_ids, generation.logprobs))
        episode.pending = action if isinstance(action, Search | Call) else None
        return Turn(generation, text, action, thinking=thinking)

    def _settle(self, episode: Episode, turn: Turn, answer: Response | None, emit: Callable[[Event], None]) -> None:
        """End the turn with the environment's response."""
        if isinstance(turn.action, Answer):
            episode.stop = "answer"
        elif episode.stop is None:
            turn = _with_answer(turn, answer)
            with episode.playing():
                turn = self._observe(episode, turn, answer)
        episode.turns.append(turn)
        emit(TurnTaken(episode.id, turn))

    def _generate(self, live: Sequence[Episode], sampling: Sampling, emit: Callable[[Event], None]) -> list[Generation]:
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

    def _retrieve(self, waiting: Sequence[Episode]) -> list[tuple[Episode, Found]]:
        """Hits of every query of the waiting episodes, found together; if that fails, the episodes end unscored."""
        lookups = [(episode, lookup_of(episode, self.top_k, self._form)) for episode in waiting]
        lookups = [(episode, lookup) for episode, lookup in lookups if episode.stop is None]
        if not any(lookup.asked for _, lookup in lookups):
            return []
        started = time.perf_counter()
        try:
            if self.retriever is None:
                raise RetrieverError("the environment searches, but no retriever is configured")
            answers = look_up(self.retriever, [lookup for _, lookup in lookups])
        except Exception as error:  # retrievers are anybody's code too
            if ends_run(error):
                raise
            for episode, _ in lookups:
                episode.stop, episode.failure = "retriever_failed", failure_of("the retriever", error)
            return []
        finally:
            _divide_time(waiting, "retrieve", time.perf_counter() - started)
        return [(episode, lookup.choose(answers)) for episode, lookup in lookups]

    def _retrieve_each(self, waiting: Sequence[Episode]) -> list[Found | None]:
        """Like ``_retrieve``, with None for failed searches."""
        found = {episode.id: hits for episode, hits in self._retrieve(waiting)}
        return [found.get(episode.id) for episode in waiting]

    def _call(self, live: Sequence[Episode]) -> list[tuple[Episode, ToolAnswer]]:
        """What the called tools answer the episodes that wait for one; the calls run side by side."""
        waiting = [e for e in live if isinstance(e.pending, Call)]
        if not waiting:
            return []
        if self.tools is None:
            raise ConfigError("the environment calls tools, but none is configured", "set environment.tools")
        started = time.perf_counter()
        answers = self.tools.call([(e.pending, e.turns) for e in waiting if isinstance(e.pending, Call)])
        _divide_time(waiting, "tools", time.perf_counter() - started)
        return list(zip(waiting, answers, strict=True))

    def _observe(self, episode: Episode, turn: Turn, answer: Response | None) -> Turn:
        """Append the environment's observation, or end the episode; returns the completed turn."""
        seen = _respond(episode, answer)
        if isinstance(seen, Stop):
            episode.stop = seen.reason
            return turn
        self._insert(episode, "environment", seen, "token_budget")
        return replace(turn, observation=seen.text)


def _with_answer(turn: Turn, answer: Response | None) -> Turn:
    """The turn with what came back to it, whether the environment shows it or not."""
    if isinstance(answer, ToolAnswer):
        return replace(turn, failure=answer.text if answer.failed else "")
    if answer is None:
        return turn
    counts = tuple(map(len, answer)) if len(answer) > 1 else ()
    return replace(turn, hits=tuple(hit for hits in answer for hit in hits), hits_per_query=counts)


def _respond(episode: Episode, answer: Response | None) -> Observation | Stop:
    """Let the environment respond. Only one that has tools is asked about calls and several queries."""
    environment = episode.environment
    if isinstance(answer, ToolAnswer):
        return cast("ToolEnvironment", environment).observe_call(answer, episode.room)
    if answer is not None and len(answer) > 1:
        return cast("ToolEnvironment", environment).observe_several(answer, episode.room)
    return environment.observe(answer[0] if answer else None, episode.room)


def _close(episode: Episode) -> Trajectory:
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


def _request(episode: Episode) -> Request:
    """The next turn, or the rest of one that is not over: a seed of its own, and what is left of its budget."""
    turn, said = len(episode.turns), episode.said.token_ids if episode.said else ()
    seed = derive_seed(episode.seed, turn, len(said)) if said else derive_seed(episode.seed, turn)
    thinking = bool(said) or episode.thinking  # a turn goes on inside a thought only
    prefix, images = [*episode.prefix, *said], tuple(episode.images)
    return Request(episode.id, prefix, episode.turn_room, seed, thinking, images=images)


def _announce(episode: Episode, emit: Callable[[Event], None]) -> None:
    if episode.said is None and episode.thinking:
        emit(ThoughtOpen(episode.id))


def _token_listener(emit: Callable[[Event], None]) -> OnToken | None:
    return None if emit is _ignore else lambda *token: emit(TokenSampled(*token))


def _fit(episodes: Sequence[Episode], before: Sequence[Mapping[str, float]], wall: float) -> None:
    """Scale the timings that overlapping episodes have added so that they sum to the wall time."""
    pairs = list(zip(episodes, before, strict=True))
    added = sum(e.timings[stage] - old.get(stage, 0.0) for e, old in pairs for stage in e.timings)
    for episode, old in pairs:
        for stage, total in episode.timings.items():
            start = old.get(stage, 0.0)
            episode.timings[stage] = start + (total - start) * wall / max(added, 1e-9)


def _divide_time(episodes: Sequence[Episode], stage: str, seconds: float) -> None:
    """Divide a batch's wall time equally among its episodes."""
    for episode in episodes:
        episode.timings[stage] = episode.timings.get(stage, 0.0) + seconds / len(episodes)


def _ignore(_event: Event) -> None:
    return None
