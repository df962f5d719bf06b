"""``--dry-run``: the resolved config and the estimated cost of a step, computed without loading weights."""

from __future__ import annotations

from pathlib import Path

from agent.config import GrpoSettings, WarmstartSettings
from sleuth.errors import PolicyError, first_line
from sleuth.layout import STAGES
from workflows.config import RunSettings

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def estimate_lines(settings: RunSettings, until: str) -> list[str]:
    """Size, upper bounds for tokens, and memory of the stages up to and including ``until``, as lines of text.

    Where the configuration of a model on the hub cannot be read, one line says so and nothing is said of memory.
    """
    reached = STAGES[: STAGES.index(until) + 1]
    width = _BYTES[settings.policy.dtype]
    parameters, line = _size(settings, width)
    lines = [line]
    given = _is_adapter(settings)  # is trained itself, or in a warm start merged
    if "warmstart" in reached and settings.warmstart:
        adapter = given or settings.warmstart.lora is not None
        lines += _warmstart_lines(settings.warmstart, parameters, width, adapter=adapter)
    if "grpo" in reached and settings.grpo:
        adapter = settings.grpo.lora is not None or (given and settings.warmstart is None)
        lines += _grpo_lines(settings.grpo, settings.environment.total_tokens, parameters, width, adapter=adapter)
    return lines


def _size(settings: RunSettings, width: int) -> tuple[int | None, str]:
    try:
        parameters = count_parameters(settings)
    except PolicyError as error:
        if _is_local(settings):
            raise
        return None, f"policy: size and memory are not known: {error.message}"
    return parameters, f"policy: {parameters / 1e6:.1f} M parameters, {parameters * width / 2**20:,.0f} MiB of weights"


def _warmstart_lines(warmstart: WarmstartSettings, parameters: int | None, width: int, *, adapter: bool) -> list[str]:
    tokens = f"warm start: at most {warmstart.batch_size * warmstart.max_tokens:,} tokens per step"
    if parameters is None:
        return [tokens]
    return [f"{tokens}; memory before activations: {_memory(parameters, width, adapter, reference=0)}"]


def _grpo_lines(
    grpo: GrpoSettings, total_tokens: int, parameters: int | None, width: int, *, adapter: bool
) -> list[str]:
    rows = grpo.questions * grpo.group_size
    size = rows // grpo.minibatches
    asked, played = grpo.rollouts * grpo.questions, grpo.rollouts * rows
    lines = [
        f"a rollout: {grpo.questions:,} questions x {grpo.group_size} = {rows:,} trajectories,"
        f" at most {rows * total_tokens:,} tokens",
        f"its updates: {grpo.updates_per_rollout} of {size:,} trajectories,"
        f" in micro-batches of {grpo.micro_batch or size}",
        f"GRPO in all: {grpo.rollouts:,} rollouts, {grpo.steps:,} updates ({grpo.warmup_updates:,} of warm-up),"
        f" {asked:,} questions, {played:,} trajectories, at most {played * total_tokens:,} tokens",
    ]
    if grpo.oversample > 1:
        lines.append(f"dynamic sampling: up to {grpo.oversample:g} times as many questions, trajectories and tokens")
    if parameters is None:
        return lines
    reference = width if grpo.beta and not adapter else 0
    return [*lines, f"GRPO, memory before activations: {_memory(parameters, width, adapter, reference)}"]


def memory_needed(settings: RunSettings) -> int:
    """Bytes that the greediest stage takes before activations. Raises PolicyError where the size is not known."""
    parameters, width, given = count_parameters(settings), _BYTES[settings.policy.dtype], _is_adapter(settings)
    needed = [parameters * width]
    if settings.warmstart:
        needed.append(_bytes_of(parameters, width, given or settings.warmstart.lora is not None, 0))
    if grpo := settings.grpo:
        adapter = grpo.lora is not None or (given and settings.warmstart is None)
        needed.append(_bytes_of(parameters, width, adapter, width if grpo.beta and not adapter else 0))
    return max(needed)


def disk_needed(settings: RunSettings) -> int:
    """Bytes of the policies and checkpoints of a run; adapters are too small to count. Raises PolicyError."""
    weights = count_parameters(settings) * _BYTES["float32"]
    needed = 0
    for stage, kept in (
        (settings.warmstart, 1),
        (settings.grpo, settings.grpo.keep_checkpoints if settings.grpo else 0),
    ):
        if stage is not None:
            needed += weights + (0 if stage.lora else 3 * kept * weights)  # a policy; weights and moments a checkpoint
    return needed


def _memory(parameters: int, width: int, adapter: bool, reference: int) -> str:
    total = _bytes_of(parameters, width, adapter, reference)
    if adapter:
        return f"about {total / 2**20:,.0f} MiB (weights; plus the adapter, its gradients and moments)"
    also = ", reference" if reference else ""
    return f"about {total / 2**20:,.0f} MiB (weights, gradients, two Adam moments{also})"


def _bytes_of(parameters: int, width: int, adapter: bool, reference: int) -> int:
    return parameters * width if adapter else parameters * (4 * _BYTES["float32"] + reference)


def _is_adapter(settings: RunSettings) -> bool:
    from agent.policies.loading import adapter_base, resolve_model

    return settings.policy.model is not None and adapter_base(resolve_model(settings.policy.model)) is not None


def _is_local(settings: RunSettings) -> bool:
    """Whether the policy, or an adapter's base model, is on this machine and not on the hub."""
    from agent.policies.loading import adapter_base, resolve_model

    if settings.policy.tiny is not None:
        return True
    source = resolve_model(settings.policy.model or "")
    return Path(adapter_base(source) or source).exists()


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
