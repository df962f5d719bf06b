"""``--dry-run``: the resolved config and what a step will cost, worked out without loading weights."""

from __future__ import annotations

from cli.config import RunSettings
from sleuth.settings import to_yaml

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def print_estimate(settings: RunSettings) -> None:
    """Print the config as YAML on standard output and the estimate on standard error."""
    import typer

    from cli.console import people

    typer.echo(to_yaml(settings))
    for line in estimate_lines(settings):
        people().print(line, highlight=False)


def estimate_lines(settings: RunSettings) -> list[str]:
    """Upper bounds for tokens and memory of one GRPO rollout, in words."""
    parameters = count_parameters(settings)
    width = _BYTES[settings.policy.dtype]
    lines = [f"policy: {parameters / 1e6:.1f} M parameters, {parameters * width / 2**20:,.0f} MiB of weights"]
    if settings.grpo is None:
        return lines
    grpo, rows = settings.grpo, settings.grpo.questions * settings.grpo.group_size
    tokens = rows * settings.environment.total_tokens
    updates = grpo.minibatches * grpo.iterations
    lines.append(f"a rollout: {rows} trajectories, at most {tokens:,} tokens, {updates} updates")
    reference = width if grpo.beta and not grpo.lora else 0
    total = parameters * (width if grpo.lora else 4 * _BYTES["float32"] + reference)
    what = "weights" if grpo.lora else "weights, gradients, two Adam moments"
    also = ", reference" if reference else ""
    lines.append(f"memory before activations: about {total / 2**20:,.0f} MiB ({what}{also})")
    return lines


def count_parameters(settings: RunSettings) -> int:
    """Parameters of the policy, from its configuration alone; of a tiny one without its embedding."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if settings.policy.tiny is not None:
        tiny = settings.policy.tiny
        # The vocabulary, and with it the embedding, is not known before the world is made.
        per_layer = 4 * tiny.hidden_size**2 + 3 * tiny.hidden_size * tiny.intermediate_size
        return tiny.layers * per_layer
    from agent.policies.loading import resolve_model

    config = AutoConfig.from_pretrained(resolve_model(settings.policy.model or ""))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(p.numel() for p in model.parameters())
