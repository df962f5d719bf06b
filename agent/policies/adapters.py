"""Writes a low-rank adapter as a folder in PEFT's layout, as engines expect it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleuth.errors import PolicyError

if TYPE_CHECKING:
    import torch


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
        "task_type": "CAUSAL_LM",
        "bias": "none",
        **known,
        "r": max(value.shape[0] for value in down.values()),
        "target_modules": sorted({name.split(".lora_A.")[0].rpartition(".")[2] for name in down}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.clone() for name, value in plain.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
