"""``--dry-run``: the resolved config and the estimated cost of a step, computed without loading weights."""

from __future__ import annotations

from pathlib import Path

from agent.config import GrpoSettings, WarmstartSettings
from hub.config import LoraSettings
from sleuth.errors import PolicyError, first_line
from sleuth.layout import STAGES
from workflows.config import RunSettings

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def estimate_lines(settings: RunSettings, until: str) -> list[str]:
    """Upper bounds for tokens and memory of the stages up to and including ``until``, as lines of text."""
    reached = STAGES[: STAGES.index(until) + 1]
    try:
        parameters = count_parameters(settings)
    except PolicyError as error:
        if Path(settings.policy.model or "").exists():
            raise
        return [f"no estimate: {error.message}"]
    width = _BYTES[settings.policy.dtype]
    lines = [f"policy: {parameters / 1e6:.1f} M parameters, {parameters * width / 2**20:,.0f} MiB of weights"]
    if "warmstart" in reached and settings.warmstart:
        lines.append(_warmstart_line(settings.warmstart, parameters, width))
    if "grpo" in reached and settings.grpo:
        lines += _grpo_lines(settings.grpo, settings.environment.total_tokens, parameters, width)
    return lines


def _warmstart_line(warmstart: WarmstartSettings, parameters: int, width: int) -> str:
    tokens = warmstart.batch_size * warmstart.max_tokens
    memory = _memory(parameters, width, warmstart.lora, reference=0)
    return f"warm start: at most {tokens:,} tokens per step; memory before activations: {memory}"


def _grpo_lines(grpo: GrpoSettings, total_tokens: int, parameters: int, width: int) -> list[str]:
    rows, updates = grpo.questions * grpo.group_size, grpo.minibatches * grpo.iterations
    reference = width if grpo.beta and not grpo.lora else 0
    return [
        f"a rollout batch: {rows} trajectories, at most {rows * total_tokens:,} tokens, {updates} updates",
        f"GRPO, memory before activations: {_memory(parameters, width, grpo.lora, reference)}",
    ]


def _memory(parameters: int, width: int, lora: LoraSettings | None, reference: int) -> str:
    if lora:
        return f"about {parameters * width / 2**20:,.0f} MiB (weights; plus the adapter, its gradients and moments)"
    also = ", reference" if reference else ""
    total = parameters * (4 * _BYTES["float32"] + reference)
    return f"about {total / 2**20:,.0f} MiB (weights, gradients, two Adam moments{also})"


def count_parameters(settings: RunSettings) -> int:
    """Number of parameters of the policy, from its configuration alone; for a tiny policy without the embedding."""
    import torch
    from transformers import AutoModelForCausalLM

    from agent.policies.loading import read_config

    if settings.policy.tiny is not None:
        tiny = settings.policy.tiny
        # The vocabulary, and so the embedding, is unknown until the world is made.
        per_layer = 4 * tiny.hidden_size**2 + 3 * tiny.hidden_size * tiny.intermediate_size
        return tiny.layers * per_layer
    config = read_config(settings.policy)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=settings.policy.trust_remote_code)
    except (OSError, ValueError) as error:
        raise PolicyError(
            f"cannot read the configuration of policy.model '{settings.policy.model}': {first_line(error)}"
        ) from None
    return sum(p.numel() for p in model.parameters())
