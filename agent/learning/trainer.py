"""One step of GRPO: rollout, reward, advantage, loss. TRL's trainer does the rest, with its own loss.

``_roll_out`` gets scored trajectories from the source and per-token advantages from the credit scheme, and passes
tokens and masks to TRL; TRL adds the reference's log-probs, and ``_generate_and_score_completions`` stores the
advantages where the loss reads them. The rest applies importance ratios and computes metrics.
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
from agent.learning.credit.assign import (
    TokenAdvantages,
    advantages_kept,
    assign,
    is_flat,
    mean_advantage,
    refuse_by_token,
)
from agent.learning.importance import Importance, share
from agent.learning.length_groups import Scored, score_trimmed
from agent.learning.masked import ReadHead, check_sampled, sampled_tokens, without_masked
from agent.learning.rollouts import RolloutRecord, cut, to_row
from agent.learning.sources import RolloutSource, first_row
from agent.learning.unscored import SCALE, check_unscored, factor_of, weigh_scored
from agent.policies.kv_cache import is_recurrent
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
"""Metrics of an optimizer step that are not means over micro-batches and processes, and how they are reduced."""


_TOKEN_MEANS = frozenset(
    {
        *("entropy", "kl", "cispo_clip_ratio", "vespo/phi_seq_mean"),
        *("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"),
    }
)
"""TRL's means over the tokens of a micro-batch. Its log leaves out NaN."""


class MeasuredGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer on a source of rollouts, with our own advantages. What it overrides, and why:

    - ``_generate_and_score_completions``: advantages are a scheme's, per token; TRL has one scheme, per row.
    - ``_prepare_inputs``: TRL counts unscored rows where a loss is a mean over rows, so the others' loss is scaled.
    - ``_get_per_token_logps_and_entropies``: rows of similar length are batched together, those for recurrent layers
      without padding before them; passes are timed; what stands at masked positions is replaced, since TRL only
      multiplies it by 0.
    - ``_compute_loss``: importance ratios for tokens of older policies, and metrics of what the loss reads.
    - ``get_off_policy_mask``, ``get_high_entropy_mask``: TRL does not log what it drops.
    - ``log``: TRL writes means over micro-batches, but some metrics are maxima or sums.
    - ``_load_from_checkpoint``: transformers does not restore a second adapter, or a reference that is updated.

    Added to every log line: seconds of the log-prob passes, ratios, and whether sampler and trainer agree.
    ``check/logprob_gap`` is the largest difference, in nats, between the log-prob that the sampler
    reported for a policy token and the one recomputed here before the first update after a rollout.
    ``check/masked_tokens`` counts the tokens that the loss reads. Both cover all micro-batches and processes.

    ``importance`` weighs sampled tokens by importance ratios; None: no ratios. ``max_unscored`` is the share of a
    rollout that may be unscored; above it, a checkpoint is saved and TrainingError raised. ``keep`` is called with
    every rollout of this process, including advantages.
    """

    sampled_at_step = -1
    """The optimizer step before which the current rollout was sampled."""
    beta: float
    entropy_coef: float
    """TRL's coefficients of the KL term and of the entropy bonus."""

    def __init__(
        self,
        *,
        source: RolloutSource,
        credit: Credit,
        importance: Importance | None = None,
        max_unscored: float = 1.0,
        keep: Callable[[RolloutRecord], None] | None = None,
        **of_trl: Any,
    ) -> None:
        self.importance = importance
        self.source = source
        self._credit = credit
        self._max_unscored = max_unscored
        self._keep = keep
        self._sampled: torch.Tensor | None = None
        self._masks: list[Sequence[int]] = []
        self._weighing: dict[str, torch.Tensor] | None = None
        self._reference_seconds = 0.0
        super().__init__(reward_funcs=self.reward, rollout_func=self._roll_out, **of_trl)
        self._recurrent = is_recurrent(self.model)
        models = [model for model in (self.model, self.ref_model) if model is not None]
        self._head = ReadHead(*models)
        for model in models:
            model.register_forward_pre_hook(_count_positions, with_kwargs=True)

    def _roll_out(self, prompts: list[str], _trainer: Any) -> dict[str, list[Any]]:
        """TRL's ``rollout_func``: as many rows as prompts, in order."""
        record = self.source.rollout(prompts, self)
        advantages, flat = self._advantages_of(record.scored)
        refuse_by_token(advantages, self.loss_type, self.importance_sampling_level)
        scored = [_recorded(s, row) for s, row in zip(record.scored, advantages, strict=True)]
        self._record = replace(record, scored=scored, metrics={**record.metrics, "groups/flat": flat})
        self.sampled_at_step = record.version
        if self._keep:
            self._keep(self._record)
        error = check_unscored(scored, self._max_unscored, self.state.global_step)
        if error is not None:
            self._save_checkpoint(self.model, trial=None)
            self.callback_handler.on_save(self.args, self.state, self.control)
            raise error
        ends = [*self.eos_token_ids, self._tokenizer.pad_token_id]  # those of TRL's rule
        rows = [to_row(s, self.processing_class.eos_token_id, ends) for s in scored]
        self._advantages = [_over_columns(a, row.mask) for a, row in zip(advantages, rows, strict=True)]
        self._masks = [row.mask for row in rows]
        return {
            "prompt_ids": [row.prompt_ids for row in rows],
            "completion_ids": [row.completion_ids for row in rows],
            "logprobs": [row.logprobs for row in rows],
            "env_mask": [row.mask for row in rows],
        }

    def _advantages_of(self, scored: Sequence[ScoredTrajectory]) -> tuple[list[TokenAdvantages], float]:
        """Advantages of this process's trajectories, computed over all processes', and the fraction of flat groups."""
        alone = self.accelerator.num_processes == 1
        groups = assign(self._credit, cut(list(scored) if alone else gather_object(list(scored)), self.num_generations))
        first = first_row(len(scored), self)
        rows = [row for group in groups for row in group][first : first + len(scored)]
        return rows, sum(map(is_flat, groups)) / len(groups)

    def reward(self, log_metric: Callable[[str, float], None], **_columns: Any) -> list[float | None]:
        """TRL's reward function, for its log: the rewards of the current rollout, and its metrics."""
        for name, value in self._record.metrics.items():
            log_metric(name, value)
        return [scored.reward for scored in self._record.scored]

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        try:
            output = super()._generate_and_score_completions(inputs)
        finally:
            self._masks = []
        columns = output["completion_ids"].shape[1]
        padded = [row + [0.0] * (columns - len(row)) for row in self._advantages]
        output["advantages"] = torch.tensor(padded, device=output["completion_ids"].device)
        known = [scored.reward is not None for scored in self._record.scored]
        output["scored"] = torch.tensor(known, device=output["completion_ids"].device)
        # TRL compares rewards, with its own tolerance; groups/flat is computed from the advantages.
        self._metrics["train" if self.model.training else "eval"].pop("frac_reward_zero_std", None)
        return output

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is not before:  # a new rollout, shuffled and cut into micro-batches
            steps = self.args.gradient_accumulation_steps
            weigh_scored(self._buffered_inputs, steps, self.accelerator.reduce)
        return inputs

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
        sampled = self._sampled if self._sampled is not None else self._just_sampled(input_ids, logits_to_keep)

        def score(ids: torch.Tensor, mask: torch.Tensor, keep: int, read: torch.Tensor | None) -> Scored:
            with self._head.showing(read):
                found: Scored = theirs(model, ids, mask, keep, *args, **kwargs)
            return found

        result = score_trimmed(
            score,
            input_ids,
            attention_mask,
            logits_to_keep,
            # A load-balancing loss needs all rows at once.
            split=self.accelerator.num_processes == 1 and not kwargs.get("compute_aux_loss"),
            # TRL pads prompts on the left, which not every recurrent layer or kernel skips.
            left=not self._recurrent,
            read=sampled,
        )
        if sampled is not None:
            logps, entropies, auxiliary = result
            entropies = None if entropies is None else torch.where(sampled, entropies, 0.0)
            result = (torch.where(sampled, logps, 0.0), entropies, auxiliary)
        if torch.is_grad_enabled():
            self._current_logps = result[0].detach()
            if self._weighing is not None and self.importance is not None:
                self._weigh_tokens(self._weighing, self.importance)
        else:
            self._reference_seconds += time.perf_counter() - started
        return result

    def _just_sampled(self, input_ids: torch.Tensor, columns: int) -> torch.Tensor | None:
        """What the loss will read of a rollout whose log-probs are asked for before the update; None if unknown."""
        if len(self._masks) != input_ids.shape[0] or max(map(len, self._masks)) > columns:
            return None
        rows = [[*mask, *[0] * (columns - len(mask))] for mask in self._masks]
        return torch.tensor(rows, device=input_ids.device).bool()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As in transformers, plus what it leaves out: an adapter beside the reference's, an updated reference."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        adapters = getattr(self.model, "peft_config", {})
        if len(adapters) > 1:
            # From a checkpoint with adapters in subfolders, transformers loads only those.
            self.model.load_adapter(resume_from_checkpoint, "default", is_trainable=True)
            self.model.set_adapter("default")
        if self.args.sync_ref_model:
            load_model(self.accelerator.unwrap_model(self.ref_model), str(Path(resume_from_checkpoint) / REFERENCE))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in TRL, which logs means over micro-batches; maxima, minima and sums are reduced first."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        own = {name: join(metrics[name]) for name, join in _JOINED.items() if metrics.get(name)}
        everyones = gather_object([own])
        for name, join in _JOINED.items():
            values = [figures[name] for figures in everyones if name in figures]
            if values:
                metrics[name] = [join(values)]
        super().log(logs, start_time)

    def take_reference_seconds(self) -> float:
        """Seconds spent since the last call on log-probs without gradient (reference, old policy)."""
        taken, self._reference_seconds = self._reference_seconds, 0.0
        return taken

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        self._sampled = sampled_tokens(inputs)
        inputs = without_masked(inputs, self._sampled)
        rows, batches = inputs.pop(SCALE, torch.ones(2)).tolist()
        scale, beta, bonus = factor_of(self.loss_type, rows, batches), self.beta, self.entropy_coef
        if scale != 1.0:
            inputs["advantages"], self.beta = inputs["advantages"] * scale, beta * scale
        self.entropy_coef = bonus * batches
        self._weighing = inputs if self.importance is not None else None
        try:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
        finally:
            self._weighing, self._sampled, self.beta, self.entropy_coef = None, None, beta, bonus
        mode = "train" if self.model.training else "eval"
        if written := self._metrics[mode].get("entropy_coef"):
            written[-1] = bonus
        check_sampled(self._current_logps, inputs, self.state.global_step)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step}: stopped before the update",
                "the last checkpoint is intact; lower grpo.learning_rate in a new run",
            )
        mask = inputs["completion_mask"] * inputs["tool_mask"]
        logps = self._current_logps
        if not mask.any() and self._metrics[mode]["entropy"][-1] == 0.0:  # no process had a token: TRL's means are 0
            for name in _TOKEN_MEANS & self._metrics[mode].keys():
                self._metrics[mode][name][-1] = math.nan
        old = inputs.get("old_per_token_logps")
        if mask.any():
            chosen = mask.bool()
            ratio = (logps - old)[chosen].abs().max().exp() if old is not None else torch.ones(())
            self._metrics[mode]["ratio/max"].append(ratio.item())
            if self.args.delta is not None and old is not None and self.importance_sampling_level == "token":
                self._measure("ratio/above_delta", share((logps - old).exp() > self.args.delta, mask))
            if self.sampled_at_step == self.state.global_step:
                gap = (logps - inputs["sampling_per_token_logps"])[chosen].abs().max()
                self._metrics[mode]["check/logprob_gap"].append(gap.item())
        self._metrics[mode]["check/masked_tokens"].append(float(mask.sum().item()))
        return loss

    def _weigh_tokens(self, inputs: dict[str, torch.Tensor], importance: Importance) -> None:
        """Weigh the loss of sampled tokens; clipping and KL are unchanged.

        Called after TRL has computed log-probs and before it reads the advantages. VESPO takes the weights themselves,
        as a part of the weight of a sequence.
        """
        old = inputs.get("old_per_token_logps")
        mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        now = self._current_logps if old is None else old
        weights, figures = importance.weights(now, inputs["sampling_per_token_logps"], mask)
        if self.loss_type == "vespo":
            inputs["importance_sampling_ratio"] = weights
        else:
            inputs["advantages"] = inputs["advantages"] * weights
        for name, value in figures.items():
            self._measure(name, value)

    def get_off_policy_mask(self, *, mask: torch.Tensor, **of_trl: Any) -> torch.Tensor:
        kept: torch.Tensor = super().get_off_policy_mask(mask=mask, **of_trl)
        self._measure("mask/off_policy", share(kept == 0, mask))
        return kept

    def get_high_entropy_mask(self, entropies: torch.Tensor, mask: torch.Tensor, threshold: float) -> torch.Tensor:
        kept: torch.Tensor = super().get_high_entropy_mask(entropies, mask, threshold)
        self._measure("mask/low_entropy", share(~kept, mask))
        return kept

    def _measure(self, name: str, value: float) -> None:
        self._metrics["train" if self.model.training else "eval"][name].append(value)


def _recorded(scored: ScoredTrajectory, advantages: TokenAdvantages) -> ScoredTrajectory:
    kept = advantages_kept(advantages, scored.trajectory.turn_lengths)
    origin = scored.origin
    return replace(scored, origin=origin and replace(origin, advantage=mean_advantage(advantages), advantages=kept))


def _over_columns(advantages: TokenAdvantages, mask: Sequence[int]) -> list[float]:
    """A trajectory's advantages where its completion's ``mask`` is 1, and 0 elsewhere."""
    given = iter(advantages)
    return [next(given) if sampled else 0.0 for sampled in mask]


def _count_positions(_model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Computes positions from the mask if none are given: TRL pads prompts on the left and passes none.

    The sampler counts a row's own tokens, so the trainer must too; otherwise rounding (and, with absolute positions,
    the result) would depend on the longest prompt of a batch.
    """
    mask = kwargs.get("attention_mask")
    if kwargs.get("position_ids") is None and mask is not None and kwargs.get("past_key_values") is None:
        kwargs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return args, kwargs


def finite_gradients(model: torch.nn.Module) -> bool:
    """Whether all gradients are finite."""
    norms = torch._foreach_norm([p.grad for p in model.parameters() if p.grad is not None])
    return all(math.isfinite(norm.item()) for norm in norms)
