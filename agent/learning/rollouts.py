"""TRL's ``rollout_func``: play a generation batch, score it, hand back tokens, mask and rewards.

TRL hands over this process's slice of the prompts, each already repeated ``group_size`` times, and
wants exactly as many rows back, in order. Rewards are worked out here, once, from typed trajectories;
the reward function given to TRL only passes them on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from agent.learning.mixture import spare_question
from sleuth.protocols import Environment
from sleuth.seeding import derive_seed
from sleuth.types import Invalid, Origin, Question, Sampling, ScoredTrajectory, Segment, Trajectory


class Scorer(Protocol):
    def score(self, trajectory: Trajectory) -> ScoredTrajectory: ...


class Driver(Protocol):
    """What training needs of ``RolloutDriver``: it may stand for workers elsewhere."""

    codec: Any
    environment: Callable[[], Environment]
    policy: Any

    def run(
        self, questions: Sequence[Question], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[Trajectory]: ...


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """One trajectory as TRL takes it; ``mask`` is 1 for policy tokens, all 0 where nothing may be learned."""

    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float]
    mask: list[int]
    reward: float | None


@dataclass(slots=True)
class RolloutRecord:
    """What a rollout was, for logging and for the trajectory file; ``version`` is the oldest that sampled in it."""

    step: int = -1
    version: int = -1
    scored: list[ScoredTrajectory] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


class GroupRollouts:
    """Callable as ``rollout_func(prompts, trainer)``; a prompt is a question's position as text.

    Every trajectory's seed is keyed by run seed, optimizer step, question position and place in the
    rollout, so that a resumed run samples what the uninterrupted one would have. ``oversample`` above 1
    replaces groups of equal rewards by further questions, up to that many times the batch in all; ``spare``
    draws their positions from seeds.
    ``on_rollout`` gets the record once the trainer has told the advantages (``weigh``).
    """

    def __init__(
        self,
        driver: Driver,
        questions: Sequence[Question],
        scorer: Scorer,
        *,
        group_size: int,
        temperature: float,
        seed: int,
        oversample: float = 1.0,
        spare: Callable[[int], int] | None = None,
        on_rollout: Callable[[RolloutRecord], None] | None = None,
    ) -> None:
        self.driver = driver
        self.record = RolloutRecord()
        self._questions = questions
        self._scorer = scorer
        self._group_size = group_size
        self._sampling = Sampling(temperature)
        self._seed = seed
        self._oversample = oversample
        self._spare = spare or spare_question([len(questions)], [1.0])
        self._on_rollout = on_rollout

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        offset = trainer.accelerator.process_index * len(prompts)
        return self.hand_over(self.play(prompts, int(trainer.state.global_step), offset))

    def play(self, prompts: Sequence[str], step: int, offset: int, driver: Driver | None = None) -> RolloutRecord:
        """Play and score ``prompts``, rows ``offset`` and on of the rollout before optimizer step ``step``.

        Changes nothing here, so that rollouts may be played ahead, each with a ``driver`` of its own.
        """
        chosen = driver or self.driver
        places = [(int(prompt), f"row {offset + row}") for row, prompt in enumerate(prompts)]
        scored, seconds = self._play(places, step, chosen)
        replaced = 0
        if self._oversample > 1.0:
            scored, replaced, more = self._replace_flat_groups(scored, step, offset, chosen)
            seconds += more
        placed = [replace(s, origin=Origin(step, (offset + row) // self._group_size)) for row, s in enumerate(scored)]
        record = RolloutRecord(step, _oldest_version(scored, step), placed, summarise(scored, self._group_size))
        record.metrics |= {"time/score": seconds, "groups/replaced": float(replaced)}
        return record

    def hand_over(self, record: RolloutRecord) -> dict[str, list[Any]]:
        """The rows of ``record`` for TRL, which is told its figures and advantages from now on."""
        self.record = record
        rows = [to_row(s, self.driver.codec.eos_token_id) for s in record.scored]
        return {
            "prompt_ids": [row.prompt_ids for row in rows],
            "completion_ids": [row.completion_ids for row in rows],
            "logprobs": [row.logprobs for row in rows],
            "env_mask": [row.mask for row in rows],
            "trajectory_reward": [row.reward for row in rows],
        }

    def weigh(self, advantages: Sequence[float]) -> None:
        """Take down the advantages that the trainer gave the rows of the last rollout; the rollout is whole then."""
        rows = zip(self.record.scored, advantages, strict=True)
        self.record.scored = [
            replace(s, origin=s.origin and replace(s.origin, advantage=float(value))) for s, value in rows
        ]
        if self._on_rollout:
            self._on_rollout(self.record)

    def reward(
        self,
        completions: list[str],
        trajectory_reward: list[float | None],
        log_metric: Callable[[str, float], None] | None = None,
        **_columns: Any,
    ) -> list[float | None]:
        """The reward function for TRL: the rewards of the rollout, with its figures logged beside them."""
        if len(trajectory_reward) != len(completions):
            raise ValueError(f"{len(completions)} completions but {len(trajectory_reward)} rewards")
        for name, value in self.record.metrics.items() if log_metric else ():
            log_metric(name, value)  # type: ignore[misc]
        return trajectory_reward

    def _play(
        self, places: Sequence[tuple[int, str]], step: int, driver: Driver
    ) -> tuple[list[ScoredTrajectory], float]:
        """Scored trajectories for (question position, place in the rollout) pairs, and the seconds of scoring."""
        questions = [self._questions[position % len(self._questions)] for position, _ in places]
        seeds = [derive_seed(self._seed, "rollout", step, position, place) for position, place in places]
        trajectories = driver.run(questions, self._sampling, seeds)
        started = time.perf_counter()
        scored = [self._scorer.score(trajectory) for trajectory in trajectories]
        return scored, time.perf_counter() - started

    def _replace_flat_groups(
        self, scored: list[ScoredTrajectory], step: int, offset: int, driver: Driver
    ) -> tuple[list[ScoredTrajectory], int, float]:
        size = self._group_size
        groups = [scored[start : start + size] for start in range(0, len(scored), size)]
        flat = [index for index, group in enumerate(groups) if is_flat(group)]
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
            fresh = [played[start : start + size] for start in range(0, len(played), size)]
            drawn, seconds = drawn + take, seconds + more
            for group in (group for group in fresh if not is_flat(group)):
                groups[flat.pop(0)] = group
                replaced += 1
        return [s for group in groups for s in group], replaced, seconds


def _oldest_version(scored: Sequence[ScoredTrajectory], step: int) -> int:
    return min((turn.generation.policy_version for s in scored for turn in s.trajectory.turns), default=step)


def is_flat(group: Sequence[ScoredTrajectory]) -> bool:
    """Whether a group's rewards are all equal: it carries no advantage. Unscored rows do not count."""
    return len({s.reward for s in group if s.reward is not None}) < 2


def to_row(scored: ScoredTrajectory, eos: int) -> RolloutRow:
    """Tokens after the prompt with their log-probs and loss mask.

    A finished trajectory that does not end in EOS gets one that the loss never sees, since TRL takes
    a row for truncated unless its last token is EOS. An unscored one is masked throughout, so that it
    takes part in neither the reward nor the KL term.
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
    if not ids or (scored.trajectory.answer is not None and ids[-1] != eos):
        ids, logprobs, mask = [*ids, eos], [*logprobs, 0.0], [*mask, 0]
    if scored.reward is None:
        mask = [0] * len(mask)
    assert len(ids) == len(logprobs) == len(mask)
    return RolloutRow(list(prompt.token_ids), ids, logprobs, mask, scored.reward)


def summarise(scored: Sequence[ScoredTrajectory], group_size: int) -> dict[str, float]:
    """Figures of a rollout for a log line; seconds are wall time."""
    trajectories = [s.trajectory for s in scored]
    turns = [turn for t in trajectories for turn in t.turns]
    groups = [scored[start : start + group_size] for start in range(0, len(scored), group_size)]
    count = len(trajectories)
    metrics = {
        "rollout/answered": sum(t.answer is not None for t in trajectories) / count,
        "rollout/searched": sum(bool(t.searches) for t in trajectories) / count,
        "rollout/searches": sum(len(t.searches) for t in trajectories) / count,
        "rollout/invalid_turns": sum(isinstance(turn.action, Invalid) for turn in turns) / max(len(turns), 1),
        "rollout/unscored": sum(s.reward is None for s in scored) / count,
        "rollout/policy_tokens": sum(sum(t.policy_mask) for t in trajectories) / count,
        "groups/flat": sum(is_flat(group) for group in groups) / len(groups),
        "time/generate": sum(t.timings["generate"] for t in trajectories),
        "time/retrieve": sum(t.timings["retrieve"] for t in trajectories),
    }
    for name in scored[0].parts:
        values = [value for s in scored if (value := s.parts.get(name)) is not None]
        if values:
            metrics[f"reward/{name}"] = sum(values) / len(values)
    return metrics
