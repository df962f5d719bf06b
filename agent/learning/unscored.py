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
"""Name, among the inputs of a micro-batch, of the factor of its loss."""
ROW_MEANS = frozenset({"grpo", "sapo", "dr_grpo", "luspo"})
"""Losses that TRL divides by the number of rows, whether these have tokens or not."""
BATCH_MEANS = frozenset({"bnpo"})
"""Losses that TRL divides by the tokens of a micro-batch and then by the number of micro-batches. The remaining ones
are divided by the tokens of the whole rollout, which do not include those of unscored rows.
"""

Batch = dict[str, torch.Tensor]


def weigh_scored(
    batches: Sequence[Batch], accumulated: int, loss: str, total: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Put into each micro-batch the factor by which its loss must grow, given that ``scored`` says which rows count.

    Each optimizer step takes ``accumulated`` micro-batches of every process; ``total`` adds up over processes. The
    factor is all rows of the step divided by its scored ones; of `BATCH_MEANS`, micro-batches are counted instead of
    rows. It is 1 where all or none are scored.
    """
    if loss not in ROW_MEANS | BATCH_MEANS:
        return
    scored = torch.stack([batch["scored"].float() for batch in batches])  # [micro-batches, rows]
    counted = scored if loss in ROW_MEANS else scored.amax(dim=1, keepdim=True)
    steps = counted.split(accumulated)
    counts = total(torch.stack([torch.stack([torch.ones_like(step).sum(), step.sum()]) for step in steps]))
    factors = [everything / kept if kept else 1.0 for everything, kept in counts.tolist()]
    for position, batch in enumerate(batches):
        batch[SCALE] = torch.tensor(factors[position // accumulated])


def check_unscored(scored: Sequence[ScoredTrajectory], limit: float, step: int) -> TrainingError | None:
    """The error that ends a run of which more than the share ``limit`` of a rollout, all processes', has no reward."""
    mine = Counter(cause(one.trajectory) for one in scored if one.reward is None)
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
