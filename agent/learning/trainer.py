"""One step of GRPO: rollout, reward, advantage, loss. TRL's trainer does the rest, and its loss is used as it is.

``_roll_out`` asks the source for scored trajectories and the credit scheme for their advantages, one a token, and hands
TRL tokens and masks; TRL adds log-probs of the reference, and ``_generate_and_score_completions`` puts the advantages
where its loss reads them. The rest weighs tokens of older policies, and measures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_model
from trl import GRPOTrainer

from agent.learning.checkpoints import REFERENCE
from agent.learning.credit.assign import Row, assign, is_flat, mean_advantage
from agent.learning.length_groups import score_trimmed
from agent.learning.rollouts import RolloutRecord, cut, to_row
from agent.learning.sources import RolloutSource, first_row
from sleuth.errors import TrainingError
from sleuth.protocols import Credit
from sleuth.types import ScoredTrajectory

_JOINED: dict[str, Callable[[list[float]], float]] = {
    "check/logprob_gap": max,
    "check/masked_tokens": sum,
    "importance/max": max,
    "importance/min": min,
    "ratio/max": max,
}
"""How a figure of one optimizer step comes from those of its micro-batches and processes, where not by their mean."""


class MeasuredGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer on a source of rollouts, with advantages of our own. What it overrides, and why:

    - ``_generate_and_score_completions``: advantages are a scheme's, one a token; TRL knows one scheme, one a row.
    - ``_get_per_token_logps_and_entropies``: rows of like length go through the model together; passes are timed.
    - ``_compute_loss``: importance weights for tokens of older policies, and figures of what the loss reads.
    - ``log``: TRL writes means over micro-batches where some figures are largest ones or sums.
    - ``_load_from_checkpoint``: transformers forgets an adapter beside another, and a reference that moves.

    Added to every log line: seconds of the log-prob passes, ratios, and whether sampler and trainer agree.
    ``check/logprob_gap`` is the largest difference, in nats, between the log-prob that the sampler
    reported for a policy token and the one recomputed here before the first update after a rollout.
    ``check/masked_tokens`` counts the tokens that the loss reads. Both are of all micro-batches and processes.

    ``importance_cap`` cuts the importance weights of sampled tokens off; None weighs every token alike. ``keep`` is
    given every rollout of this process, advantages included.
    """

    sampled_at_step = -1
    """The optimizer step before which the rollout at hand was sampled."""

    def __init__(
        self,
        *,
        source: RolloutSource,
        credit: Credit,
        importance_cap: float | None = None,
        keep: Callable[[RolloutRecord], None] | None = None,
        **of_trl: Any,
    ) -> None:
        self.importance_cap = importance_cap
        self.source = source
        self._credit = credit
        self._keep = keep
        self._weighing: dict[str, torch.Tensor] | None = None
        self._reference_seconds = 0.0
        super().__init__(reward_funcs=self.reward, rollout_func=self._roll_out, **of_trl)
        for model in (self.model, self.ref_model):
            if model is not None:
                model.register_forward_pre_hook(_count_positions, with_kwargs=True)

    def _roll_out(self, prompts: list[str], _trainer: Any) -> dict[str, list[Any]]:
        """TRL's ``rollout_func``: as many rows as prompts, in order."""
        record = self.source.rollout(prompts, self)
        advantages, flat = self._advantages_of(record.scored)
        scored = [_recorded(s, row) for s, row in zip(record.scored, advantages, strict=True)]
        self._record = replace(record, scored=scored, metrics={**record.metrics, "groups/flat": flat})
        self.sampled_at_step = record.version
        if self._keep:
            self._keep(self._record)
        rows = [to_row(s, self.processing_class.eos_token_id) for s in scored]
        self._advantages = [_over_columns(a, row.mask) for a, row in zip(advantages, rows, strict=True)]
        return {
            "prompt_ids": [row.prompt_ids for row in rows],
            "completion_ids": [row.completion_ids for row in rows],
            "logprobs": [row.logprobs for row in rows],
            "env_mask": [row.mask for row in rows],
        }

    def _advantages_of(self, scored: Sequence[ScoredTrajectory]) -> tuple[list[Row], float]:
        """Of this process's trajectories, worked out over those of all; and the share of groups that are flat."""
        alone = self.accelerator.num_processes == 1
        groups = assign(self._credit, cut(list(scored) if alone else gather_object(list(scored)), self.num_generations))
        first = first_row(len(scored), self)
        rows = [row for group in groups for row in group][first : first + len(scored)]
        return rows, sum(map(is_flat, groups)) / len(groups)

    def reward(self, log_metric: Callable[[str, float], None], **_columns: Any) -> list[float | None]:
        """TRL's reward function, for its log lines: the rewards of the rollout at hand, its figures beside them."""
        for name, value in self._record.metrics.items():
            log_metric(name, value)
        return [scored.reward for scored in self._record.scored]

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        columns = output["completion_ids"].shape[1]
        padded = [row + [0.0] * (columns - len(row)) for row in self._advantages]
        output["advantages"] = torch.tensor(padded, device=output["completion_ids"].device)
        # TRL judges by rewards, with a tolerance of its own: groups/flat says it of the advantages themselves.
        self._metrics["train" if self.model.training else "eval"].pop("frac_reward_zero_std", None)
        return output

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        started = time.perf_counter()
        theirs = super()._get_per_token_logps_and_entropies
        result = score_trimmed(
            lambda ids, mask, keep: theirs(model, ids, mask, keep, *args, **kwargs),
            input_ids,
            attention_mask,
            logits_to_keep,
            # A load-balancing loss is of all rows at once.
            split=self.accelerator.num_processes == 1 and not kwargs.get("compute_aux_loss"),
        )
        if torch.is_grad_enabled():
            self._current_logps = result[0].detach()
            if self._weighing is not None:
                self._weigh_tokens(self._weighing)
        else:
            self._reference_seconds += time.perf_counter() - started
        return result

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As transformers does, and what it leaves out: the adapter beside that of the reference, a moved reference."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        adapters = getattr(self.model, "peft_config", {})
        if len(adapters) > 1:
            # From a checkpoint with adapters in subfolders it loads those alone.
            self.model.load_adapter(resume_from_checkpoint, "default", is_trainable=True)
            self.model.set_adapter("default")
        if self.args.sync_ref_model:
            load_model(self.accelerator.unwrap_model(self.ref_model), str(Path(resume_from_checkpoint) / REFERENCE))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's, which writes the mean over micro-batches: largest, smallest and summed figures are joined before."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        own = {name: join(metrics[name]) for name, join in _JOINED.items() if metrics.get(name)}
        everyones = gather_object([own])
        for name, join in _JOINED.items():
            values = [figures[name] for figures in everyones if name in figures]
            if values:
                metrics[name] = [join(values)]
        super().log(logs, start_time)

    def take_reference_seconds(self) -> float:
        """Seconds spent since last asked on log-probs that carry no gradient (reference, old policy)."""
        taken, self._reference_seconds = self._reference_seconds, 0.0
        return taken

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = dict(inputs)
        self._weighing = inputs if self.importance_cap is not None else None
        try:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
        finally:
            self._weighing = None
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step}: stopped before the update",
                "the last checkpoint is whole; lower grpo.learning_rate in a new run",
            )
        mask = inputs["completion_mask"] * inputs["tool_mask"]
        logps = self._current_logps
        mode = "train" if self.model.training else "eval"
        old = inputs.get("old_per_token_logps")
        if mask.any():
            chosen = mask.bool()
            ratio = (logps - old)[chosen].abs().max().exp() if old is not None else torch.ones(())
            self._metrics[mode]["ratio/max"].append(ratio.item())
            if self.sampled_at_step == self.state.global_step:
                gap = (logps - inputs["sampling_per_token_logps"])[chosen].abs().max()
                self._metrics[mode]["check/logprob_gap"].append(gap.item())
        self._metrics[mode]["check/masked_tokens"].append(float(mask.sum().item()))
        return loss

    def _weigh_tokens(self, inputs: dict[str, torch.Tensor]) -> None:
        """Multiply the advantages [rows, tokens] by truncated importance ratios.

        TRL reads them after it has asked for the log-probs, which is when this is called. The ratio is that of the
        policy before this rollout's first update to the one that sampled the token, whatever engine or version that
        was (truncated importance sampling); clipping and KL are left as they are.
        """
        old = inputs.get("old_per_token_logps")
        ratio = ((self._current_logps if old is None else old) - inputs["sampling_per_token_logps"]).exp()
        mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        ratio = torch.where(mask, ratio, torch.ones_like(ratio))
        weight = ratio.clamp(max=self.importance_cap)
        inputs["advantages"] = inputs["advantages"] * weight
        mode = "train" if self.model.training else "eval"
        if mask.any():
            chosen = ratio[mask]
            for name, value in (
                ("mean", chosen.mean()),
                ("min", chosen.min()),
                ("max", chosen.max()),
                ("truncated", (chosen > weight[mask]).float().mean()),
            ):
                self._metrics[mode][f"importance/{name}"].append(value.item())


def _recorded(scored: ScoredTrajectory, advantages: Row) -> ScoredTrajectory:
    origin = scored.origin
    return replace(scored, origin=origin and replace(origin, advantage=mean_advantage(advantages)))


def _over_columns(advantages: Row, mask: Sequence[int]) -> list[float]:
    """A row's advantages where its completion's ``mask`` is 1, and 0 elsewhere."""
    given = iter(advantages)
    return [next(given) if sampled else 0.0 for sampled in mask]


def _count_positions(_model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Positions from the mask where none are given: TRL pads prompts on the left and passes none.

    The sampler counts a row's own tokens, so the trainer must too, or rounding (and with absolute
    positions the meaning) differs by how long the longest prompt of a batch is.
    """
    mask = kwargs.get("attention_mask")
    if kwargs.get("position_ids") is None and mask is not None and kwargs.get("past_key_values") is None:
        kwargs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return args, kwargs


def finite_gradients(model: torch.nn.Module) -> bool:
    """Whether no gradient holds NaN or infinity."""
    norms = torch._foreach_norm([p.grad for p in model.parameters() if p.grad is not None])
    return all(math.isfinite(norm.item()) for norm in norms)
