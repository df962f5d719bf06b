"""Masked means absent: what stands at positions that the policy did not sample cannot reach loss or gradients.

TRL multiplies by the mask, which is not enough: 0 times infinity is not a number, in gradients too. So the values are
replaced before TRL sees them.
"""

from __future__ import annotations

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


class HeadShield:
    """Shows a language-model head only the states from which sampled tokens are predicted, zeros elsewhere.

    Otherwise logits that overflow at another position would make gradients NaN, although the loss does not read them:
    the gradient of a log-softmax is 0 times its probabilities there, and those are NaN.
    """

    def __init__(self, model: Any) -> None:
        whole = model.get_base_model() if hasattr(model, "get_base_model") else model  # a PEFT adapter's
        self._sampled: torch.Tensor | None = None
        whole.base_model.register_forward_hook(self._hide)

    @contextmanager
    def showing(self, sampled: torch.Tensor | None) -> Iterator[None]:
        """Within the context, ``sampled`` [rows, last columns] says which tokens count; None: all."""
        self._sampled = sampled
        try:
            yield
        finally:
            self._sampled = None

    def _hide(self, _module: Any, _args: Any, output: Any) -> Any:
        states = getattr(output, "last_hidden_state", None)
        if self._sampled is None or states is None:
            return output
        before = states.shape[1] - self._sampled.shape[1] - 1  # position t predicts token t + 1
        shown = pad(self._sampled, (before, 1)).unsqueeze(-1)
        output.last_hidden_state = torch.where(shown, states, 0.0)
        return output
