"""A trainer whose rollouts are made up: eight rows of sampled tokens with an observation between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from agent.config import GrpoSettings, PolicySettings
from agent.learning.credit.group import GroupCredit
from agent.learning.grpo import grpo_config
from agent.learning.options import load_trained
from agent.learning.rollouts import RolloutRecord
from agent.learning.trainer import MeasuredGRPOTrainer
from sleuth.types import Answer, Generation, Origin, Question, ScoredTrajectory, Segment, Trajectory, Turn

ROWS, GROUP = 8, 4
SHUFFLE = 4
"""Seed of an order of the rows."""
OBSERVED = 100
"""Ids from here on are the environment's, as sampled ones never are."""


def rows_of(rewards: list[float | None], seed: int = 0) -> list[ScoredTrajectory]:
    """Rows of different lengths that end in an answer; the log-probs are the sampler's, somewhere near -3."""
    draw = torch.Generator().manual_seed(seed)
    tokens = lambda count, first=5: tuple(torch.randint(first, first + 15, (count,), generator=draw).tolist())
    found = []
    for row, reward in enumerate(rewards):
        first, second = tokens(2 + row), tokens(3)
        logprob = -3.0 - 0.1 * row
        segments = (
            Segment("prompt", tokens(3 + row % 2)),
            Segment("policy", first, (logprob,) * len(first)),
            Segment("environment", tokens(4, OBSERVED)),
            Segment("policy", second, (logprob,) * len(second)),
        )
        question = Question(str(row // GROUP), "?", ("x",), file="train.jsonl")
        turn = Turn(Generation(second, (logprob,) * len(second), "stop"), "", Answer("x"))
        times = {"generate": 0.0, "retrieve": 0.0}
        played = Trajectory(question, segments, (turn,), "answer", times)
        found.append(ScoredTrajectory(played, reward, origin=Origin(0, row // GROUP)))
    return found


class MadeUp:
    """A source that gives the same rows at every step."""

    def __init__(self, rows: list[ScoredTrajectory]) -> None:
        self.rows = rows

    def rollout(self, prompts: list[str], trainer: Any) -> RolloutRecord:
        return RolloutRecord(int(trainer.state.global_step), 0, self.rows, {})

    def close(self) -> None: ...


def settings_of(loss: str, **more: Any) -> GrpoSettings:
    chosen = {"loss": loss, "questions": ROWS // GROUP, "group_size": GROUP, "micro_batch": 2, "beta": 0.1, "steps": 4}
    return GrpoSettings(**{**chosen, "save_steps": 4, "eval_steps": 4, **more})


def trainer_of(folder: Path, out: Path, settings: GrpoSettings, rows: list[ScoredTrajectory], **more: Any) -> Any:
    policy = PolicySettings(model=str(folder), device="cpu")
    model, codec = load_trained(policy, str(folder), None)
    made = MeasuredGRPOTrainer(
        source=MadeUp(rows),
        credit=GroupCredit("none"),
        model=model,
        args=grpo_config(settings, policy, out, 0, 64),
        train_dataset=Dataset.from_list([{"prompt": str(row)} for row in range(ROWS)]),
        processing_class=codec.tokenizer,
        **more,
    )
    made.current_gradient_accumulation_steps = made.args.gradient_accumulation_steps
    made.model.train()
    return made


def with_loss(made: Any, settings: GrpoSettings) -> Any:
    """The same trainer with another loss, as after a restart."""
    made.loss_type, made.importance_sampling_level = settings.loss, settings.importance
    made.epsilon_low, made.epsilon_high = settings.epsilon, settings.epsilon_high or settings.epsilon
    made._step, made._buffered_inputs = 0, None
    made.current_gradient_accumulation_steps = made.args.gradient_accumulation_steps
    return made


def gradients_of(made: Any) -> dict[str, torch.Tensor]:
    """The gradients now, which are then cleared."""
    found = {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}
    made.model.zero_grad(set_to_none=True)
    return found


def steps(made: Any) -> list[dict[str, torch.Tensor]]:
    """The gradients that each optimizer step on one rollout would use; no weight changes."""
    torch.manual_seed(SHUFFLE)
    inputs = [{"prompt": str(row)} for row in range(ROWS)]
    found = []
    for _ in range(made.args.steps_per_generation // made.args.gradient_accumulation_steps):
        for _ in range(made.args.gradient_accumulation_steps):
            made.training_step(made.model, inputs, None)
        found.append(gradients_of(made))
    return found
