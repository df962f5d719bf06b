"""A policy's low-rank adapter: peft's settings for a new one, and a trained one as a folder that an engine takes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hub.adapters import lora_config
from hub.config import LoraSettings
from sleuth.errors import ConfigError, PolicyError, first_line

if TYPE_CHECKING:
    import torch

_TASK = "CAUSAL_LM"
_DOWN, _UP = ".lora_A.", ".lora_B."
_PREFIX = "base_model.model."
"""peft's, before the name that a layer has without an adapter."""


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

    _check_pairs(state)
    plain = {name.replace(".default.", "."): value.detach().cpu().contiguous() for name, value in state.items()}
    down = {name: value for name, value in plain.items() if _DOWN in name}
    config = {
        "peft_type": "LORA",
        "task_type": _TASK,
        "bias": "none",
        **known,
        "r": max(value.shape[0] for value in down.values()),
        "target_modules": sorted({name.split(_DOWN)[0].rpartition(".")[2] for name in down}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.clone() for name, value in plain.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_adapter(folder: Path) -> tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]:
    """The tensors and the settings in an adapter's folder. Raises PolicyError if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        known = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return load_file(folder / "adapter_model.safetensors"), known
    except (OSError, ValueError, SafetensorError) as error:
        raise PolicyError(f"cannot read the adapter in {folder}: {first_line(error)}") from None


def merged(
    base: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], known: Mapping[str, Any]
) -> Mapping[str, torch.Tensor]:
    """``base`` with W + s B A for each pair of ``state`` (Hu et al. 2021); s is alpha / r, with rslora alpha / sqrt(r).

    Raises PolicyError for a tensor that is not part of a low-rank pair, or that has no place in ``base``.
    """
    _check_pairs(state)
    found = dict(base)
    for name, down in state.items():
        if _DOWN not in name:
            continue
        place = f"{name.split(_DOWN)[0].removeprefix(_PREFIX)}.weight"
        if place not in base:
            raise PolicyError(f"the adapter changes {place}, which the policy's model lacks", "name its own base model")
        rank = down.shape[0]
        scale = known["lora_alpha"] / (math.sqrt(rank) if known.get("use_rslora") else rank)
        change = scale * (state[name.replace(_DOWN, _UP)].cpu().float() @ down.cpu().float())
        whole = base[place].float() + (change.T if known.get("fan_in_fan_out") else change)
        found[place] = dithered(whole, base[place].dtype)
    return found


def dithered(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``values`` in ``dtype``; in bfloat16 each is rounded up or down by a threshold of its own, always the same.

    The nearest number would lose every change of less than half a last place, and with it most of a young adapter.
    """
    import torch

    if dtype != torch.bfloat16:
        return values.to(dtype)
    generator = torch.Generator().manual_seed(0)
    thresholds = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, generator=generator)
    bits = values.contiguous().view(torch.int32) + thresholds
    return (bits & ~0xFFFF).view(torch.float32).to(dtype)


def _check_pairs(state: Mapping[str, torch.Tensor]) -> None:
    other = next((name for name in state if _DOWN not in name and _UP not in name), None)
    if other is not None:
        raise PolicyError(f"vllm takes low-rank adapters only, not {other}", "leave modules_to_save out")
