"""Loads a policy from a folder, a hub name, a PEFT adapter or a GGUF file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.codec import HFCodec
from agent.config import PolicySettings
from hub import adapters, models
from hub.models import ModelKind
from hub.reach import hub_or_cache
from sleuth.errors import ConfigError, PolicyError, first_line

if TYPE_CHECKING:
    from agent.vision import VisionCodec

POLICY = ModelKind("policy", PolicyError)
_TOKENIZER = ModelKind("tokenizer", PolicyError)


def load_policy_model(settings: PolicySettings, name: str, *, trainable: bool = False) -> tuple[Any, HFCodec]:
    """The causal language model at ``name`` with its codec, on the configured device and dtype.

    An adapter is loaded on its base model; ``trainable`` leaves its weights trainable.
    Raises PolicyError with a hint.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    source = resolve_model(name)
    codec = load_codec(source, trust_remote_code=settings.trust_remote_code)
    adapter = adapter_base(source)
    base = resolve_model(adapter) if adapter else source
    with models.loading(name, POLICY), hub_or_cache(base), _attending(settings.attention):
        seeing = _seeing_codec(codec, source, base, settings.trust_remote_code)
        model = (AutoModelForImageTextToText if seeing else AutoModelForCausalLM).from_pretrained(
            base,
            dtype=getattr(torch, settings.dtype),
            attn_implementation=settings.attention,
            trust_remote_code=settings.trust_remote_code,
        )
        if adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, source, is_trainable=trainable)
    if seeing:
        codec = seeing
        seeing.pictures.attach(model.get_base_model() if adapter else model)
    return model.to(pick_device(settings.device)), codec


def _seeing_codec(codec: HFCodec, source: str, base: str, trust_remote_code: bool) -> VisionCodec | None:
    """With the model's processor, if it is one that sees."""
    from transformers import AutoConfig, AutoProcessor

    from agent.vision import VisionCodec, sees

    if not sees(AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)):
        return None
    own = (Path(source) / "processor_config.json").exists()
    processor = AutoProcessor.from_pretrained(source if own else base, trust_remote_code=trust_remote_code)
    return VisionCodec(codec.tokenizer, codec.end_token_ids, processor)


@contextlib.contextmanager
def _attending(attention: str) -> Iterator[None]:
    """Turn the error of a model or an installation without this kind of attention into one that names the setting."""
    try:
        yield
    except (ImportError, ValueError) as error:
        if "attention" not in str(error).lower():
            raise
        other = "eager" if attention == "sdpa" else "sdpa"
        raise PolicyError(
            f"policy.attention is '{attention}': {first_line(error).partition('. ')[0]}", f"set it to {other}"
        ) from error


def read_config(settings: PolicySettings) -> Any:
    """The transformers configuration of ``settings.model``, or of its base if it is an adapter; no weights are read.

    Raises PolicyError if it cannot be had, as of a hub name without a network.
    """
    from transformers import AutoConfig

    source = resolve_model(settings.model or "")
    adapter = adapter_base(source)
    base = resolve_model(adapter) if adapter else source
    try:
        with hub_or_cache(base):
            return AutoConfig.from_pretrained(base, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError) as error:
        raise PolicyError(
            f"cannot read the configuration of policy.model '{settings.model}': {first_line(error)}",
            "policy.trust_remote_code=true runs it" if "custom code" in str(error) else "",
        ) from None


def load_codec(name: str, *, trust_remote_code: bool = False) -> HFCodec:
    """The tokenizer of a policy as a codec; for an adapter without one, its base model's."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    source = resolve_model(name)
    base = adapter_base(source)
    if base and not (Path(source) / "tokenizer_config.json").exists():
        source = resolve_model(base)
    # AutoTokenizer replaces the pipeline of a custom tokenizer.json by that of the model's family.
    generic = _tokenizer_class(source) in ("PreTrainedTokenizerFast", "TokenizersBackend")
    loader: Any = PreTrainedTokenizerFast if generic else AutoTokenizer
    extra = {} if generic else {"trust_remote_code": trust_remote_code}
    with models.loading(name, _TOKENIZER), hub_or_cache(source):
        tokenizer = loader.from_pretrained(source, padding_side="left", **extra)
        ends = _end_tokens(source, trust_remote_code)
    return HFCodec(tokenizer, ends)


def _end_tokens(source: str, trust_remote_code: bool) -> list[int]:
    """The tokens at which the model's own settings end a text (Llama 3 has three); none beside a bare tokenizer."""
    from transformers import AutoConfig, GenerationConfig

    for settings, extra in ((GenerationConfig, {}), (AutoConfig, {"trust_remote_code": trust_remote_code})):
        try:
            named = settings.from_pretrained(source, **extra).eos_token_id
        except (OSError, ValueError, AttributeError):
            continue
        if named is not None:
            ends = named if isinstance(named, list) else [named]
            if not all(isinstance(end, int) for end in ends):
                raise PolicyError(f"{source} gives {named!r} as its eos_token_id", "write token ids there")
            return [end for end in ends if end >= 0]
    return []


def resolve_model(name: str) -> str:
    """``name`` in a form that transformers loads: ``smollm2`` and GGUF files become converted folders.

    An adapter on the hub becomes its folder in the hub's cache: loaded by its name, none of its weights can be trained.
    """
    if name.startswith(("http://", "https://")):
        raise PolicyError(
            f"{name} is a server, whose weights are not here", "evaluate it or chat with it; to train, name a model"
        )
    found = models.resolve_model(name, POLICY)
    return found if Path(found).exists() else adapters.hub_adapter(found, POLICY) or found


def pick_device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(name)
    return name


def check_device(name: str) -> None:
    """Raise ConfigError if torch does not have ``policy.device`` here."""
    import torch

    if name == "auto":
        return
    try:
        kind, index = torch.device(name).type, torch.device(name).index
    except RuntimeError:
        raise ConfigError(
            f"policy.device is '{name}', which torch does not know", "write auto, cpu, cuda or cuda:1"
        ) from None
    if kind == "cuda" and (index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"policy.device is '{name}', but torch finds {torch.cuda.device_count()} GPUs", "write auto")
    if kind in ("cpu", "cuda"):
        return
    try:
        torch.zeros(1, device=name).item()
    except (
        RuntimeError,
        NotImplementedError,
        AssertionError,
    ) as error:  # no such device in this build
        reason = first_line(error).partition(". ")[0]
        raise ConfigError(f"policy.device '{name}' cannot be used here: {reason}", "write auto") from None


def adapter_base(source: str) -> str | None:
    """The base model of an adapter folder; None if ``source`` is not an adapter folder."""
    return adapters.adapter_base(source, POLICY)


def _tokenizer_class(source: str) -> str:
    path = Path(source) / "tokenizer_config.json"
    if not path.is_file():
        return ""
    return str(models.read_json(path, POLICY).get("tokenizer_class", ""))
