"""What unscored rows do to a step: nothing. The others weigh as if they were alone, and too many end the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from accelerate.utils import gather_object

from sleuth.errors import TrainingError
from sleuth.failures import cause, causes
from sleuth.types import ScoredTrajectory

SCALE = "step_scale"
"""Name, among the inputs of a micro-batch, of its two factors: for what is a mean over rows, and over micro-batches."""
ROW_MEANS = frozenset({"grpo", "sapo", "dr_grpo", "luspo"})
"""Losses that TRL divides by the number of rows, whether these have tokens or not."""
BATCH_MEANS = frozenset({"bnpo"})
"""Losses that TRL divides by the tokens of a micro-batch and then by the number of micro-batches, as it does with the
entropy bonus of any loss. The remaining ones are divided by the tokens of the rollout, without those of unscored rows.
"""

Batch = dict[str, torch.Tensor]


def weigh_scored(batches: Sequence[Batch], accumulated: int, total: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Put into each micro-batch the factors by which means must grow, given that ``scored`` says which rows count.

    Each optimizer step takes ``accumulated`` micro-batches of every process; ``total`` adds up over processes. The
    factors are all rows of the step divided by its scored ones, and all micro-batches by those that have a scored row.
    They are 1 where all or none are scored.
    """
    rows = torch.stack([batch["scored"].float() for batch in batches])  # [micro-batches, rows]
    counts = [
        torch.stack([torch.stack([torch.ones_like(part).sum(), part.sum()]) for part in kept.split(accumulated)])
        for kept in (rows, rows.amax(dim=1))
    ]
    everyones = total(torch.stack(counts, dim=1))  # [steps, rows or micro-batches, all or scored]
    factors = torch.where(everyones[..., 1] > 0, everyones[..., 0] / everyones[..., 1], 1.0)
    for position, batch in enumerate(batches):
        batch[SCALE] = factors[position // accumulated]


def factor_of(loss: str, rows: float, batches: float) -> float:
    """By which of the two factors the policy and KL terms of ``loss`` grow."""
    return rows if loss in ROW_MEANS else batches if loss in BATCH_MEANS else 1.0


def check_unscored(scored: Sequence[ScoredTrajectory], limit: float, step: int) -> TrainingError | None:
    """The error that ends a run if more than the share ``limit`` of a rollout, all processes', has failed.

    A trajectory to which no reward applies has not: that depends on its question alone, and nothing is to be mended.
    """
    mine = Counter(cause(one.trajectory) for one in scored if not one.trajectory.scorable)
    everyones = gather_object([(len(scored), mine)])
    rows = sum(count for count, _ in everyones)
    found = sum((counts for _, counts in everyones), Counter[str]())
    if found.total() <= limit * rows:
        return None
    return TrainingError(
        f"{found.total()} of {rows} trajectories of step {step} could not be scored ({causes(found)}): stopped before"
        " the update",
        "a checkpoint is saved: mend what failed, then --resume; grpo.monitors.max_unscored is the share allowed",
    )
