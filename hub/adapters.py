"""LoRA adapters: their peft configuration, and what an adapter folder says about itself."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from hub.config import LoraSettings
from hub.models import ModelKind, loading, read_json
from hub.reach import hub_or_cache
from sleuth.errors import ConfigError, did_you_mean

_CONFIG = "adapter_config.json"


def lora_config(settings: LoraSettings, **task: Any) -> Any:
    """peft's LoraConfig for these settings; ``task`` is passed on, for example ``task_type``."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        **task,
    )


def merge_adapter(model: Any) -> bool:
    """Add the adapter in ``model`` to its weights and take it out, in place; False if there is none."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
    for name, layer in layers:
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    if getattr(model, "_hf_peft_config_loaded", False):
        model._hf_peft_config_loaded = False
        del model.peft_config
    for weight in model.parameters():
        weight.requires_grad_(True)
    return bool(layers)


def check_targets(model: Any, settings: LoraSettings) -> None:
    """Raise ConfigError for a name in ``target_modules`` that no layer of ``model`` has.

    peft leaves such a name out without a word, unless none fits.
    """
    if settings.target_modules == "all-linear":
        return
    modules = dict(model.named_modules())
    for target in settings.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            matrices = [name for name, one in modules.items() if getattr(one, "weight", None) is not None]
            layers = {name.rpartition(".")[2] for name in matrices if modules[name].weight.ndim == 2}
            raise ConfigError(
                f"lora.target_modules has '{target}', and no layer of this model has that name",
                did_you_mean(target, sorted(layers)),
            )


def adapter_base(source: str, kind: ModelKind) -> str | None:
    """The base model named in an adapter folder; None if ``source`` is not an adapter folder."""
    path = Path(source) / _CONFIG
    if not path.is_file():
        return None
    base: str | None = read_json(path, kind).get("base_model_name_or_path")
    if not base:
        raise kind.error(f"{path} names no base model", "set base_model_name_or_path in it")
    return base


@functools.cache
def hub_adapter(name: str, kind: ModelKind) -> str | None:
    """The folder in the hub's cache of the adapter called ``name``, downloaded if need be; None if it is no adapter."""
    from huggingface_hub import hf_hub_download, snapshot_download

    with hub_or_cache(name):
        try:
            hf_hub_download(name, _CONFIG)
        except Exception:  # noqa: BLE001 - what is wrong with a name is said when it is loaded
            return None
    with loading(name, kind):
        return str(snapshot_download(name))


def adapter_rank(source: str, kind: ModelKind) -> int:
    """The rank of the adapter in folder ``source``."""
    return int(read_json(Path(source) / _CONFIG, kind)["r"])
