"""Play the questions of a rollout in groups and score them.

TRL passes this process's slice of the prompts, each already repeated ``group_size`` times, and expects exactly as
many rows back, in order. Rewards are computed here, once, from typed trajectories.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from agent.learning.credit.assign import assign, is_flat
from agent.learning.mixture import spare_question
from sleuth.protocols import Credit, Environment
from sleuth.seeding import derive_seed
from sleuth.types import Invalid, Origin, Question, Sampling, ScoredTrajectory, Segment, Trajectory


class Scorer(Protocol):
    def score_all(self, trajectories: Sequence[Trajectory]) -> list[ScoredTrajectory]: ...


class Driver(Protocol):
    """The part of ``RolloutDriver`` that training uses; workers elsewhere may implement it too."""

    codec: Any
    environment: Callable[[], Environment]
    policy: Any

    def run(
        self, questions: Sequence[Question], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[Trajectory]: ...


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """One trajectory in TRL's form; ``mask`` is 1 for policy tokens, all 0 for an unscored trajectory."""

    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float]
    mask: list[int]


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """A played rollout; ``version`` is the oldest weights that sampled in it, ``metrics`` are logged."""

    step: int
    version: int
    scored: Sequence[ScoredTrajectory]
    metrics: Mapping[str, float]


class GroupRollouts:
    """Plays a rollout; a prompt is a question's position as text.

    Every trajectory's seed is derived from run seed, optimizer step, question position and position in the
    rollout, so a resumed run samples the same as an uninterrupted one. ``oversample`` above 1 is dynamic sampling
    (DAPO): flat groups are replaced by new questions, up to that many times the batch in total; ``spare`` draws
    their positions from seeds.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        scorer: Scorer,
        credit: Credit,
        *,
        group_size: int,
        temperature: float,
        seed: int,
        top_p: float = 1.0,
        oversample: float = 1.0,
        spare: Callable[[int], int] | None = None,
    ) -> None:
        self._questions = questions
        self._scorer = scorer
        self._credit = credit
        self._group_size = group_size
        self.sampling = training_sampling(temperature, top_p)
        self._seed = seed
        self._oversample = oversample
        self._spare = spare or spare_question([len(questions)], [1.0])

    def play(self, prompts: Sequence[str], step: int, offset: int, driver: Driver) -> RolloutRecord:
        """Play and score ``prompts``, rows ``offset`` and on of the rollout before optimizer step ``step``.

        Has no side effects, so rollouts may be played ahead, each with its own ``driver``.
        """
        places = [(int(prompt), f"row {offset + row}") for row, prompt in enumerate(prompts)]
        scored, seconds = self._play(places, step, driver)
        replaced = 0
        if self._oversample > 1.0:
            scored, replaced, more = self._replace_flat_groups(scored, step, offset, driver)
            seconds += more
        placed = [replace(s, origin=Origin(step, (offset + row) // self._group_size)) for row, s in enumerate(scored)]
        metrics = summarise(scored) | {"time/score": seconds, "groups/replaced": float(replaced)}
        return RolloutRecord(step, _oldest_version(scored, step), placed, metrics)

    def _play(
        self, places: Sequence[tuple[int, str]], step: int, driver: Driver
    ) -> tuple[list[ScoredTrajectory], float]:
        """Scored trajectories for pairs (question position, position in the rollout), and the seconds spent scoring."""
        questions = [self._questions[position % len(self._questions)] for position, _ in places]
        seeds = [derive_seed(self._seed, "rollout", step, position, place) for position, place in places]
        trajectories = driver.run(questions, self.sampling, seeds)
        started = time.perf_counter()
        scored = self._scorer.score_all(trajectories)
        return scored, time.perf_counter() - started

    def _replace_flat_groups(
        self, scored: list[ScoredTrajectory], step: int, offset: int, driver: Driver
    ) -> tuple[list[ScoredTrajectory], int, float]:
        """Flat as far as this process can tell: a scheme that looks beyond a group is shown this process's groups."""
        size = self._group_size
        groups = cut(scored, size)
        flat = self._flat_places(groups)
        budget = int(len(groups) * self._oversample) - len(groups)
        drawn, replaced, seconds = 0, 0, 0.0
        while flat and drawn < budget:
            take = min(len(flat), budget - drawn)
            seeds = [derive_seed(self._seed, "replacement", step, offset, drawn + i) for i in range(take)]
            positions = [self._spare(seed) for seed in seeds]
            places = [
                (position, f"replacement {offset} {drawn + i} {member}")
                for i, position in enumerate(positions)
                for member in range(size)
            ]
            played, more = self._play(places, step, driver)
            drawn, seconds = drawn + take, seconds + more
            for group in cut(played, size):
                place = flat[0]
                changed = [*groups[:place], group, *groups[place + 1 :]]
                if place not in self._flat_places(changed):
                    groups, flat, replaced = changed, flat[1:], replaced + 1
            flat = self._flat_places(groups)
        return [s for group in groups for s in group], replaced, seconds

    def _flat_places(self, groups: Sequence[Sequence[ScoredTrajectory]]) -> list[int]:
        return [place for place, rows in enumerate(assign(self._credit, groups)) if is_flat(rows)]


def training_sampling(temperature: float, top_p: float) -> Sampling:
    """How rollouts are sampled: from the nucleus, with the log-probs that the trainer computes."""
    return Sampling(temperature, top_p, full_logprobs=top_p < 1.0)


def _oldest_version(scored: Sequence[ScoredTrajectory], step: int) -> int:
    return min((turn.generation.policy_version for s in scored for turn in s.trajectory.turns), default=step)


def cut(scored: Sequence[ScoredTrajectory], size: int) -> list[Sequence[ScoredTrajectory]]:
    """A rollout's consecutive groups of ``size``."""
    return [scored[start : start + size] for start in range(0, len(scored), size)]


def to_row(scored: ScoredTrajectory, eos: int, ends: Collection[int] = ()) -> RolloutRow:
    """Tokens after the prompt with their log-probs and loss mask.

    TRL takes a row for truncated unless its last token is EOS or one of ``ends`` (other end tokens, padding); here it
    is truncated unless it has an answer. So an answered row that ends in none of them gets a masked EOS, and an
    unanswered row that ends in one (or is empty) gets a masked token of another kind. An unscored one is fully masked,
    so that it contributes neither to the loss nor to the KL term.
    """
    prompt, *rest = scored.trajectory.segments or (Segment("prompt", (eos,)),)
    ids: list[int] = []
    logprobs: list[float] = []
    mask: list[int] = []
    for segment in rest:
        sampled = segment.source == "policy"
        ids += segment.token_ids
        logprobs += segment.logprobs if sampled else [0.0] * len(segment.token_ids)
        mask += [int(sampled)] * len(segment.token_ids)
    complete = bool(ids) and ids[-1] in {eos, *ends}
    closing: int | None = None
    if scored.trajectory.answer is not None:
        closing = None if complete else eos
    elif complete or not ids:
        closing = next(token for token in itertools.count() if token not in {eos, *ends})
    if closing is not None:
        ids, logprobs, mask = [*ids, closing], [*logprobs, 0.0], [*mask, 0]
    if scored.reward is None:
        mask = [0] * len(mask)
    assert len(ids) == len(logprobs) == len(mask)
    return RolloutRow(list(prompt.token_ids), ids, logprobs, mask)


def summarise(scored: Sequence[ScoredTrajectory]) -> dict[str, float]:
    """Metrics of a rollout for the log; seconds are wall time."""
    trajectories = [s.trajectory for s in scored]
    turns = [turn for t in trajectories for turn in t.turns]
    count = len(trajectories)
    metrics = {
        "rollout/answered": sum(t.answer is not None for t in trajectories) / count,
        "rollout/searched": sum(bool(t.searches) for t in trajectories) / count,
        "rollout/searches": sum(len(t.queries) for t in trajectories) / count,
        "rollout/invalid_turns": sum(isinstance(turn.action, Invalid) for turn in turns) / max(len(turns), 1),
        "rollout/unscored": sum(s.reward is None for s in scored) / count,
        "rollout/policy_tokens": sum(sum(t.policy_mask) for t in trajectories) / count,
        "time/generate": sum(t.timings["generate"] for t in trajectories),
        "time/retrieve": sum(t.timings["retrieve"] for t in trajectories),
    }
    calls = [turn for t in trajectories for turn in t.calls]
    if calls:
        metrics["rollout/calls"] = len(calls) / count
        metrics["time/tools"] = sum(t.timings.get("tools", 0.0) for t in trajectories)
        metrics["rollout/failed_calls"] = sum(bool(turn.failure) for turn in calls) / len(calls)
    for name in scored[0].parts:
        values = [value for s in scored if (value := s.parts.get(name)) is not None]
        if values:
            metrics[f"reward/{name}"] = sum(values) / len(values)
    return metrics
