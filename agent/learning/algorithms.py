"""Published algorithms as settings of `GrpoSettings`, by name: ``grpo: {algorithm: dapo, steps: 400}``.

A preset sets the loss side only: loss, level and bounds of the importance ratio, credit, KL. Questions, learning rate
and dynamic sampling (``oversample``) belong to a run. Whatever is set beside the name wins. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sleuth.errors import did_you_mean

_TOKENS: dict[str, Any] = {"importance": "token", "epsilon": 0.2}
_SUM: dict[str, Any] = {**_TOKENS, "loss": "dr_grpo"}
"""Log-probs summed over a trajectory, which is one action, and divided by a constant."""

ALGORITHMS: Mapping[str, Mapping[str, Any]] = {
    # Shao et al. 2024 (DeepSeekMath), eq. 3 and section 4.2
    "grpo": {**_TOKENS, "loss": "grpo", "credit": {"kind": "group", "scale": "group"}, "beta": 0.04},
    # Liu et al. 2025: no length normalisation, no division by the standard deviation, no KL
    "dr_grpo": {**_TOKENS, "loss": "dr_grpo", "credit": {"kind": "group", "scale": "none"}, "beta": 0.0},
    # Yu et al. 2025, section 4.1: clip higher, token mean, overlong filtering, no KL. Dynamic sampling is oversample
    "dapo": {
        **_TOKENS,
        "loss": "dapo",
        "epsilon_high": 0.28,
        "credit": {"kind": "group", "scale": "group"},
        "beta": 0.0,
        "mask_truncated": True,
    },
    # Zheng et al. 2025, section 5.1: one ratio per sequence, which is some 500 times closer to 1 than a token's
    "gspo": {
        "loss": "grpo",
        "importance": "sequence",
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
        "credit": {"kind": "group", "scale": "group"},
        "beta": 0.0,
    },
    # MiniMax-M1 2025: the ratio itself is cut off at 5 and carries no gradient, so that no token is dropped
    "cispo": {
        **_TOKENS,
        "loss": "cispo",
        "epsilon_high": 5.0,
        "credit": {"kind": "group", "scale": "group"},
        "beta": 0.0,
    },
    # Ahmadian et al. 2024; its KL penalty is part of the reward, here a term of the loss
    "rloo": {**_SUM, "credit": {"kind": "leave_one_out"}, "beta": 0.03},
    # Williams 1992
    "reinforce": {**_SUM, "credit": {"kind": "reinforce"}, "beta": 0.0},
    "reinforce_baseline": {**_SUM, "credit": {"kind": "reinforce", "baseline": "batch"}, "beta": 0.0},
    # Jin et al. 2025: GRPO with the mean over the tokens of a micro-batch and a small low-variance KL
    "search_r1": {**_TOKENS, "loss": "bnpo", "credit": {"kind": "group", "scale": "group"}, "beta": 0.001},
}

_BY_LOSS: Mapping[str, Mapping[str, Any]] = {
    "cispo": {"epsilon_high": 5.0},
    "dr_grpo": {"credit": {"kind": "group", "scale": "none"}},
    "luspo": {"importance": "sequence", "epsilon": 2e-3, "epsilon_high": 2.5e-3},
}
_BY_SEQUENCE: Mapping[str, Any] = {"epsilon": 3e-4, "epsilon_high": 4e-4}

SEQUENCE_ONLY = frozenset({"luspo"})
TOKEN_ONLY = frozenset({"bnpo", "dr_grpo", "dapo", "cispo", "vespo"})
"""Losses that add tokens up: with one ratio per sequence each trajectory would weigh as much as it is long. VESPO works
out weights of whole sequences itself."""


def spelled_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with what their algorithm sets, and what their loss is meant to have, where they do not say.

    Raises ValueError for an unknown algorithm.
    """
    name = values.get("algorithm")
    if name is not None and (not isinstance(name, str) or name not in ALGORITHMS):
        raise ValueError(f"unknown algorithm {name!r}; {did_you_mean(str(name), ALGORITHMS)}")
    preset = ALGORITHMS[name] if name is not None else {}
    if _other_ratio(preset, {**preset, **values}):
        preset = {part: value for part, value in preset.items() if part not in ("epsilon", "epsilon_high")}
    by_loss = _BY_LOSS.get(str(values.get("loss", preset.get("loss"))), {})
    found = {**by_loss, **preset, **values}
    if found.get("importance") == "sequence":
        found = {**_BY_SEQUENCE, **found}
        if "epsilon" in values and "epsilon_high" not in values:
            found["epsilon_high"] = None  # as wide above as below
    return found


def _other_ratio(preset: Mapping[str, Any], chosen: Mapping[str, Any]) -> bool:
    """Whether ``chosen`` bounds another ratio than ``preset``, whose bounds then mean nothing."""
    losses = {str(preset.get("loss")), str(chosen.get("loss"))}
    own = any("epsilon_high" in _BY_LOSS.get(loss, {}) for loss in losses)
    return chosen.get("importance") != preset.get("importance") or (len(losses) > 1 and own)


BY_TOKEN = frozenset({"grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"})
"""Losses that give every token its own advantage, with one ratio per token. One ratio per sequence, as LUSPO has too,
spreads the mean of a trajectory's advantages over its tokens; VESPO weights a sequence by the sign of its advantage."""


def by_token_refused(loss: str, importance: str) -> str | None:
    """Why advantages that differ within a trajectory do not go with ``loss`` and ``importance``; None where they do."""
    if importance == "sequence":
        return "advantages that differ by turn need importance token: a sequence's ratio spreads them over all tokens"
    if loss not in BY_TOKEN:
        return f"advantages that differ by turn do not go with loss {loss}: choose {', '.join(sorted(BY_TOKEN))}"
    return None


def contradiction(loss: str, importance: str) -> str | None:
    """Why ``loss`` and ``importance`` do not go together, in one line; None where they do."""
    if loss in SEQUENCE_ONLY and importance != "sequence":
        return f"loss {loss} is defined on whole sequences: set importance to sequence"
    if loss in TOKEN_ONLY and importance == "sequence":
        return f"loss {loss} adds tokens up, so importance cannot be sequence: set loss to grpo, or importance to token"
    return None
