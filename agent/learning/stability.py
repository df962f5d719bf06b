"""Settings that keep training stable, and which of TRL's they are. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from sleuth.settings import Rate, Settings

ImportanceMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]

CORRECTIONS = frozenset({"importance_mode", "importance_floor"})
"""Settings of a correction by importance weights, which alone do not switch it on."""
CLIPPED = frozenset({"grpo", "bnpo", "dr_grpo", "dapo", "luspo"})
"""Losses that clip the ratio on both sides; the others have no use for ``delta``."""
_OF_TRL = (
    *("off_policy_mask_threshold", "top_entropy_quantile", "delta"),
    *("sapo_temperature_pos", "sapo_temperature_neg"),
    *("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
)


class StabilitySettings(Settings):
    """Part of ``GrpoSettings``. What is masked or truncated is logged: ``mask/...``, ``importance/...``, ``entropy``.

    ``top_p`` below 1 samples training's rollouts from the nucleus. Log-probs stay those of the whole distribution, in
    the sampler as in the loss, so the loss is not corrected for the tokens that are never sampled; Search-R1's code
    does the same with 0.95. Evaluation is not affected.

    ``entropy_coefficient`` times the mean entropy of the policy's tokens in a micro-batch, in nats, is added to the
    objective, whatever the loss. ``top_entropy_quantile`` 0.2 lets only the fifth of a micro-batch's policy tokens with
    the highest entropy carry the policy loss and the entropy bonus, not the KL term (Wang et al. 2025); 1 is all.

    ``importance_cap`` corrects for tokens that were not sampled by the policy that is trained: the loss of a token is
    weighted by the ratio of the trainer's probability to the sampler's. ``auto`` is 2 if rollouts are sampled by older
    weights (an asynchronous cluster) or by an engine with kernels and weights of its own (vLLM), else off, whatever the
    mode and the floor.
    ``importance_mode``: one ratio a token, or the product of them a sequence; larger ones are cut off at the cap
    (``truncate``) or get the weight 0 (``mask``). ``importance_floor`` does the same below. A mask by sequence soon
    drops every long trajectory.

    ``off_policy_mask_threshold`` drops tokens of negative advantage in trajectories whose mean log-ratio of sampler to
    current policy is above it, in nats a token (DeepSeek-V3.2; 0.5, for example). ``delta`` is an upper bound of the
    ratio for negative advantages too, above 1 + epsilon_high (INTELLECT-2). ``sapo_...`` and ``vespo_...`` are numbers
    of those losses alone.
    """

    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    entropy_coefficient: Annotated[float, Field(ge=0.0)] = 0.0
    top_entropy_quantile: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    importance_cap: Annotated[float, Field(ge=1.0)] | Literal["auto", "off"] = "auto"
    importance_floor: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    importance_mode: ImportanceMode = "token_truncate"
    off_policy_mask_threshold: Rate | None = None
    delta: Rate | None = None
    sapo_temperature_pos: Rate = 1.0
    sapo_temperature_neg: Rate = 1.05
    vespo_k_pos: Rate = 2.0
    vespo_lambda_pos: Rate = 3.0
    vespo_k_neg: Rate = 3.0
    vespo_lambda_neg: Rate = 2.0


def changed(settings: StabilitySettings) -> set[str]:
    """Names of the settings that are not at their defaults."""
    fields = StabilitySettings.model_fields
    return {name for name, field in fields.items() if getattr(settings, name) != field.default}


def without_effect(settings: StabilitySettings, loss: str, epsilon_high: float) -> str | None:
    """Which setting TRL would refuse or ignore beside the others, in one line; None if all have an effect."""
    if settings.delta is not None and loss not in CLIPPED:
        return f"loss {loss} does not clip, so delta has no effect: remove it"
    if settings.delta is not None and settings.delta <= 1.0 + epsilon_high:
        return f"delta {settings.delta:g} leaves no room for clipping at 1 + {epsilon_high:g}: set it higher"
    for of in ("sapo", "vespo"):
        other = sorted(name for name in changed(settings) if name.startswith(f"{of}_"))
        if other and loss != of:
            return f"{other[0]} is a number of loss {of}, not of {loss}: remove it"
    corrections = sorted(changed(settings) & CORRECTIONS)
    if corrections and settings.importance_cap == "off":
        return f"{corrections[0]} has no effect with importance_cap off: remove one of them"
    if loss == "vespo" and settings.importance_mode.startswith("sequence"):
        return "loss vespo weighs whole sequences itself: set importance_mode to token_truncate or token_mask"
    return None


def trl_options(settings: StabilitySettings) -> dict[str, Any]:
    """GRPOConfig's arguments for the settings that are TRL's own."""
    return {name: getattr(settings, name) for name in _OF_TRL} | {"entropy_coef": settings.entropy_coefficient}
