"""What TRL's trainers are told alike: optimizer, schedule, precision, silence."""

from __future__ import annotations

from typing import Any

from agent.codec import HFCodec
from agent.config import OptimizerSettings, PolicySettings
from agent.policies.loading import adapter_base, load_policy_model, pick_device, resolve_model
from hub.adapters import check_targets
from hub.config import LoraSettings


def load_trained(policy: PolicySettings, name: str, lora: LoraSettings | None) -> tuple[Any, HFCodec]:
    """The model at ``name``, ready for training, with its own adapter or prepared for ``lora``.

    If all weights are trained they are float32, whatever ``policy.dtype``, since small updates are lost in 16 bits;
    the dtype is then used by autocast. peft keeps an adapter's weights in float32 over frozen 16-bit ones.
    """
    if not lora and not adapter_base(resolve_model(name)):
        policy = policy.model_copy(update={"dtype": "float32"})
    model, codec = load_policy_model(policy, name, trainable=True)
    text = model.config.get_text_config()
    if hasattr(text, "num_local_experts") and not hasattr(text, "num_experts"):
        text.num_experts = text.num_local_experts  # as TRL's load-balancing loss reads it, of Granite's models too
    if lora:
        check_targets(model, lora)
    return model, codec


def optimizer_options(settings: OptimizerSettings) -> dict[str, Any]:
    """TrainingArguments for optimizer and schedule."""
    return {
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup_ratio or settings.warmup_steps,  # below 1 transformers takes it as a fraction
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.betas[0],
        "adam_beta2": settings.betas[1],
        "max_grad_norm": settings.max_grad_norm,
    }


def runtime_options(policy: PolicySettings, logging_steps: int) -> dict[str, Any]:
    """TrainingArguments for precision, device and logging; metrics go to Sleuth's sinks, not to progress bars."""
    return {
        "bf16": policy.dtype == "bfloat16",
        "fp16": policy.dtype == "float16",
        "use_cpu": pick_device(policy.device) == "cpu",
        "logging_steps": logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "save_strategy": "steps",
        "dataloader_pin_memory": pick_device(policy.device) != "cpu",
    }


def on_one_device(args: Any) -> Any:
    """``args`` for a trainer that uses one of the visible GPUs; more GPUs need more processes."""
    if args.n_gpu > 1:
        args._n_gpu = 1
    return args
