"""LoRA adapters: their peft configuration, and what an adapter folder says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hub.config import LoraSettings
from hub.models import ModelKind, read_json

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


def adapter_base(source: str, kind: ModelKind) -> str | None:
    """The base model named in an adapter folder; None if ``source`` is not an adapter folder."""
    path = Path(source) / _CONFIG
    if not path.is_file():
        return None
    base: str | None = read_json(path, kind).get("base_model_name_or_path")
    if not base:
        raise kind.error(f"{path} names no base model", "set base_model_name_or_path in it")
    return base


def adapter_rank(source: str, kind: ModelKind) -> int:
    """The rank of the adapter in folder ``source``."""
    return int(read_json(Path(source) / _CONFIG, kind)["r"])
