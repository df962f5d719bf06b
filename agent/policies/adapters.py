"""A policy's low-rank adapter: peft's settings for a new one, and a trained one as a folder that an engine takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hub.adapters import lora_config
from hub.config import LoraSettings
from sleuth.errors import ConfigError, PolicyError

if TYPE_CHECKING:
    import torch

_TASK = "CAUSAL_LM"


def peft_config(settings: LoraSettings | None) -> Any:
    """peft's LoraConfig of these settings; None without an adapter."""
    return None if settings is None else lora_config(settings, task_type=_TASK)


def refuse_second_adapter(name: str) -> NoReturn:
    """The error of ``grpo.lora`` beside a model that is an adapter itself: only one of them can be trained."""
    raise ConfigError(
        f"policy.model '{name}' is an adapter already, and grpo.lora would add a second one",
        "leave grpo.lora out to train that adapter, or name a model into which it is merged",
    )


def write_adapter(folder: Path, state: Mapping[str, torch.Tensor], known: Mapping[str, Any]) -> None:
    """Write the adapter named ``default`` whose tensors are ``state``; ``known`` are its other settings.

    Raises PolicyError for a tensor that is not part of a low-rank pair.
    """
    from safetensors.torch import save_file

    other = [name for name in state if ".lora_A." not in name and ".lora_B." not in name]
    if other:
        raise PolicyError(f"vllm takes low-rank adapters only, not {other[0]}", "leave modules_to_save out")
    plain = {name.replace(".default.", "."): value.detach().cpu().contiguous() for name, value in state.items()}
    down = {name: value for name, value in plain.items() if ".lora_A." in name}
    config = {
        "peft_type": "LORA",
        "task_type": _TASK,
        "bias": "none",
        **known,
        "r": max(value.shape[0] for value in down.values()),
        "target_modules": sorted({name.split(".lora_A.")[0].rpartition(".")[2] for name in down}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.clone() for name, value in plain.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
