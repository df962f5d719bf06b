"""Importance weights for tokens that were sampled by another policy than the one being trained, or another engine."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from agent.learning.stability import CORRECTIONS, ImportanceMode, StabilitySettings, changed

log = logging.getLogger("sleuth.train")
AUTO_CAP = 2.0


@dataclass(frozen=True, slots=True)
class Importance:
    """How ratios become weights: per token or per sequence, cut off at the bounds or dropped beyond them.

    Truncated importance sampling, token by token, is that of Yao et al. 2025; TRL has the same four kinds, but only for
    an engine that it runs itself.
    """

    cap: float
    floor: float | None = None
    mode: ImportanceMode = "token_truncate"

    def weights(
        self, old: torch.Tensor, sampled: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Weights of the loss, [rows, tokens] or by sequence [rows, 1], and figures for the log.

        ``old`` and ``sampled`` [rows, tokens] are log-probs by the policy before this rollout's first update and by the
        one that sampled, whatever its version or engine. Where ``mask`` is False the weight of a token is 1.
        """
        by_sequence = self.mode.startswith("sequence")
        difference = torch.where(mask, old - sampled, 0.0)
        ratio = (difference.sum(-1, keepdim=True) if by_sequence else difference).exp()
        outside = (ratio > self.cap) | (ratio < (self.floor or 0.0))
        if self.mode.endswith("truncate"):
            weights, done = ratio.clamp(min=self.floor, max=self.cap), "truncated"
        else:
            weights, done = ratio.masked_fill(outside, 0.0), "masked"
        counted = mask.any(-1, keepdim=True) if by_sequence else mask
        if not counted.any():
            return weights, {}
        seen = ratio[counted]
        return weights, {
            "importance/mean": seen.mean().item(),
            "importance/min": seen.min().item(),
            "importance/max": seen.max().item(),
            f"importance/{done}": outside[counted].float().mean().item(),
        }


def importance_of(settings: StabilitySettings, *, differs: bool) -> Importance | None:
    """The correction that ``settings`` ask for; ``differs``: the sampler is not the policy that is trained."""
    cap = settings.importance_cap
    if cap == "auto" and not differs and (without := sorted(changed(settings) & CORRECTIONS)):
        log.warning(
            "grpo.%s has no effect: the policy that is trained samples itself, so importance_cap auto is off",
            without[0],
        )
    if cap == "off" or (cap == "auto" and not differs):
        return None
    return Importance(AUTO_CAP if cap == "auto" else cap, settings.importance_floor, settings.importance_mode)


def share(chosen: torch.Tensor, mask: torch.Tensor) -> float:
    """The fraction of the tokens in ``mask`` that are ``chosen``; NaN, which the log leaves out, without any."""
    tokens = mask.bool()
    return float((chosen & tokens).sum() / tokens.sum())
