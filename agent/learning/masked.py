"""Masked means absent: what stands at positions that the policy did not sample cannot reach loss or gradients.

TRL multiplies by the mask, which is not enough: 0 times infinity is not a number, in gradients too. So the values are
replaced before TRL sees them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import pad

from sleuth.errors import TrainingError

Tensors = dict[str, torch.Tensor]

_LOGPROBS = {
    "old_per_token_logps": "the old policy",
    "ref_per_token_logps": "the reference",
    "sampling_per_token_logps": "the sampler",
}
"""Log-probs recorded before the update, by TRL's names, and whose they are."""
_RATIO = "importance_sampling_ratio"
_PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask")
"""What TRL's head reports of a token."""


def sampled_tokens(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Whether the loss reads a token [rows, completion columns]."""
    return (inputs["completion_mask"] * inputs["tool_mask"]).bool()


def without_masked(inputs: Tensors, sampled: torch.Tensor) -> Tensors:
    """``inputs`` with every log-prob 0, and every ratio of single tokens 1, where nothing was sampled."""
    changed = dict(inputs)
    for name in (*_LOGPROBS, _RATIO):
        value = inputs.get(name)
        if value is not None and value.shape == sampled.shape:
            changed[name] = torch.where(sampled, value, 1.0 if name == _RATIO else 0.0)
    return changed


def check_sampled(logprobs: torch.Tensor, inputs: Mapping[str, torch.Tensor], step: int) -> None:
    """Raises TrainingError if a token that the policy sampled has a log-prob that is not finite, whoever gave it.

    The loss alone does not show it: clipping and exp(-inf) make such a token a finite number.
    """
    sampled = sampled_tokens(inputs)
    whose = {"the policy": logprobs} | {who: inputs[name] for name, who in _LOGPROBS.items() if name in inputs}
    broken = {who: sampled & ~torch.isfinite(values) for who, values in whose.items()}
    for who, places in zip(broken, torch.stack([p.any() for p in broken.values()]).tolist(), strict=True):
        if places:
            value = whose[who][broken[who]][0].item()
            raise TrainingError(
                f"{who} gives a sampled token a log-prob of {value} at step {step}: stopped before the update",
                "the last checkpoint is intact; lower grpo.learning_rate in a new run, or use policy.dtype: float32",
            )


class ReadHead:
    """Gives a language-model head only the states from which tokens are predicted that the loss reads.

    Logits that overflow at another position would make gradients NaN, although the loss does not read them: the
    gradient of a log-softmax is 0 times its probabilities there, and those are NaN. And off a GPU TRL's head computes
    the logits of every position, prompts included.
    """

    def __init__(self, *models: Any) -> None:
        self._sampled: torch.Tensor | None = None
        self._done = 0  # rows of them that were scored
        self._read: torch.Tensor | None = None
        for model in models:
            whole = model.get_base_model() if hasattr(model, "get_base_model") else model  # a PEFT adapter's
            whole.base_model.register_forward_hook(self._cut)
            self._wrap(whole)

    @contextmanager
    def showing(self, sampled: torch.Tensor | None) -> Iterator[None]:
        """Within the context, ``sampled`` [rows, last columns] says which tokens of the next rows count; None: all."""
        self._sampled, self._done = sampled, 0
        try:
            yield
        finally:
            self._sampled = None

    def _wrap(self, model: Any) -> None:
        """Put the scores of a model that TRL gave its own head back where the tokens stand."""
        scored = model.forward

        @functools.wraps(scored)
        def forward(*args: Any, labels: torch.Tensor | None = None, fused_lm_head: bool = False, **kwargs: Any) -> Any:
            if labels is None or not fused_lm_head:
                own = {} if labels is None else {"labels": labels}
                return scored(*args, **own, **({"fused_lm_head": True} if fused_lm_head else {}), **kwargs)
            following = labels.roll(-1, 1)
            self._read = places = self._places(following)
            try:
                found = scored(*args, shift_labels=following[places][None], fused_lm_head=True, **kwargs)
            finally:
                self._read = None
            for name in _PER_TOKEN:
                value = getattr(found, name)
                if value is not None:
                    setattr(found, name, value.new_zeros(places.shape).masked_scatter(places, value)[:, :-1])
            return found

        model.forward = forward

    def _places(self, following: torch.Tensor) -> torch.Tensor:
        """Positions from which a token that counts is predicted [rows, columns], by the labels that follow them."""
        places = following != -100
        places[:, -1] = False  # nothing follows
        if self._sampled is not None:
            rows = self._sampled[self._done : self._done + following.shape[0]]
            self._done += following.shape[0]
            places &= pad(rows, (following.shape[1] - rows.shape[1] - 1, 1))
        return places

    def _cut(self, _module: Any, _args: Any, output: Any) -> Any:
        states = getattr(output, "last_hidden_state", None)
        if states is not None and self._read is not None:
            output.last_hidden_state = states[self._read][None]
        return output
