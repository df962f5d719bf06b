"""Loads encoders from disk or hub: our own, sentence-transformers models, adapters, or new ones on a backbone."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from torch import nn

from hub.adapters import adapter_base
from hub.models import ModelKind, check_path, loading
from retrieval.encoders.config import EncoderChoice, EncoderKind, EncoderSettings, is_dotted
from retrieval.encoders.encoder import KIND, TASKS, Encoder, router_of, separate_towers
from retrieval.encoders.family import PassageEncoder
from retrieval.encoders.quiet import quiet_transformers
from retrieval.encoders.tokenizer import plain_tokenizer
from sleuth.artifacts import MANIFEST
from sleuth.errors import ArtifactError, ConfigError
from sleuth.plugins import load_object
from sleuth.settings import validate

ENCODER = ModelKind("encoder", ArtifactError)
_TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
"""Plain text only: if sentence-transformers found a chat template, it would apply it to every text."""
_PASSAGE_PROMPTS = ("document", "passage", "corpus")
_INSTRUCTION = "Instruct: "
_WEIGHTLESS = frozenset({"backbone", "towers"})
"""Settings that describe how the weights were made; they cannot be changed for loaded weights."""


def new_encoder(settings: EncoderSettings, *, device: str | None = None) -> Encoder:
    """An encoder with the weights of ``settings.backbone``, a transformers folder, hub name or PEFT adapter.

    Separate towers start out equal. Raises ArtifactError if it cannot be loaded or pooled that way.
    """
    if settings.pooling == "other":
        raise ArtifactError(
            f"pooling of a new encoder on {settings.backbone} is not set", "choose cls, mean, lasttoken"
        )
    _check_path(settings.backbone)
    with loading(settings.backbone, ENCODER), quiet_transformers():
        first = _transformer(settings)
    limit_tokens(first, settings)
    modules: list[nn.Module] = [first, Pooling(first.get_embedding_dimension(), settings.pooling)]
    if settings.unit_length:
        modules.append(Normalize())
    model = SentenceTransformer(
        modules=modules, prompts=_prompts(settings), similarity_fn_name=settings.similarity, device=device
    )
    encoder = Encoder(model, settings.model_copy(update={"towers": "shared"}))
    made = separate_towers(encoder) if settings.towers == "separate" else encoder
    made.source = settings.backbone
    return made


def open_encoder(source: str | Path | EncoderKind, *, device: str | None = None) -> PassageEncoder:
    """The encoder in a folder, at a hub name or dotted path, or described by settings, loaded by its family.

    Raises ArtifactError if there is none.
    """
    named = EncoderKind.of(kind=source) if isinstance(source, str) and is_dotted(source) else source
    kind = named if isinstance(named, EncoderKind) else EncoderKind.of(backbone=str(named))
    encoder: PassageEncoder = load_object(kind.LOADER)(named, device=device)
    return encoder


def open_trainable_encoder(source: str | Path | EncoderKind) -> Encoder:
    """As `open_encoder`. Raises ConfigError for an encoder of another package, which is not trained here."""
    encoder = open_encoder(source)
    if not isinstance(encoder, Encoder):
        raise ConfigError(f"{source} is of another package, so it cannot be trained here", "choose a folder or a model")
    return encoder


def load_encoder(source: str | Path | EncoderChoice, *, device: str | None = None) -> Encoder:
    """The encoder in one of our folders, or in any sentence-transformers folder or hub model.

    Settings may be given instead of a name: they override the folder's, and a ``backbone`` that is not a
    sentence-transformers model becomes a new encoder. Raises ArtifactError if there is none.
    """
    wanted = source if isinstance(source, EncoderChoice) else EncoderChoice(backbone=str(source))
    name, changes = wanted.backbone, wanted.chosen
    _check_path(name)
    if _is_bare(name) and isinstance(source, EncoderChoice):
        return new_encoder(validate(EncoderSettings, changes, name), device=device)
    if _is_bare(name):
        raise ArtifactError(
            f"{name} is not an encoder: it does not say how its states are pooled into one vector",
            "give a mapping: {backbone: ..., pooling: mean, query_prompt: ..., passage_prompt: ...}",
        )
    with loading(name, ENCODER), quiet_transformers():
        model = SentenceTransformer(name, device=device, model_kwargs=_dtype_of(wanted))
    settings = _saved_settings(name) or _settings_of(model, name)
    if changes.get("pooling", settings.pooling) != settings.pooling:
        raise ArtifactError(f"{name} pools by {settings.pooling}", "leave pooling out of its settings")
    for key in ("query_prompt", "passage_prompt"):
        _check_prompt(name, key, getattr(settings, key), changes.get(key))
    settings = settings.model_copy(update={key: changes[key] for key in changes.keys() - _WEIGHTLESS})
    full = int(model.get_embedding_dimension())
    if (settings.dimensions or 0) > full:
        raise ArtifactError(f"{name} has vectors of {full} dimensions, not {settings.dimensions}", "choose fewer")
    return Encoder(model, settings, name)


def reload_encoder(source: str, settings: Mapping[str, Any]) -> PassageEncoder:
    """The encoder at ``source`` with the ``settings`` that were recorded for it.

    If those no longer apply, it is loaded as it is now, for the caller to compare. Raises ArtifactError.
    """
    if is_dotted(source):
        return open_encoder(EncoderKind.of(**settings))
    wanted = validate(EncoderChoice, {**settings, "backbone": source}, source)
    try:
        return load_encoder(wanted)
    except ArtifactError:
        return load_encoder(source)


def _transformer(settings: EncoderSettings) -> Transformer:
    """The backbone; for an adapter, its base model with the adapter added."""
    adapter = adapter_base(settings.backbone, ENCODER)
    first = Transformer(
        adapter or settings.backbone,
        model_kwargs={"dtype": getattr(torch, settings.dtype)},
        modality_config=copy.deepcopy(_TEXT),
        module_output_name="token_embeddings",
    )
    if adapter:
        first.model.load_adapter(settings.backbone)
    return first


def _settings_of(model: SentenceTransformer, name: str) -> EncoderSettings:
    """The settings of a sentence-transformers model."""
    router = router_of(model)
    tower = list(router.sub_modules[TASKS["passage"]] if router is not None else model.children())
    everything = [*tower, *model.children()]
    pooling = next((m.pooling_mode for m in everything if isinstance(m, Pooling)), "other")
    first = tower[0]
    limit = int(getattr(first, "max_seq_length", None) or 512)
    prompts = {key: prompt or "" for key, prompt in model.prompts.items()}
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    similarity = str(model.similarity_fn_name)
    if similarity not in ("dot", "cosine"):
        raise ArtifactError(f"{name} compares by {similarity}", "only dot and cosine can be searched")
    return EncoderSettings(
        backbone=name,
        pooling=pooling if isinstance(pooling, str) else "other",
        query_prompt=prompts.get("query", ""),
        passage_prompt=next((prompts[key] for key in _PASSAGE_PROMPTS if prompts.get(key)), ""),
        normalise=any(isinstance(m, Normalize) for m in everything),
        similarity=similarity,
        query_max_tokens=int(getattr(first, "query_length", None) or limit),
        passage_max_tokens=int(getattr(first, "document_length", None) or limit),
        append_eos=_ends_in_eos(getattr(first, "tokenizer", None)),
        towers="separate" if router is not None else "shared",
        dtype=dtype,
    )


def _check_prompt(name: str, key: str, own: str, wanted: str | None) -> None:
    """Refuse to change the prompt that an encoder was trained with, except for its instruction."""
    instructions = own.startswith(_INSTRUCTION) and (wanted or "").startswith(_INSTRUCTION)
    if own and wanted is not None and wanted != own and not instructions:
        raise ArtifactError(
            f"{name} was trained with the {key} {own!r}, not {wanted!r}", f"leave {key} out of the encoder's settings"
        )


def _saved_settings(name: str) -> EncoderSettings | None:
    path = Path(name) / MANIFEST
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings = content["settings"] if content["kind"] == KIND else None
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(f"{path} is damaged", "save the encoder again") from None
    return None if settings is None else validate(EncoderSettings, settings, str(path))


def limit_tokens(first: Any, settings: EncoderSettings) -> None:
    """Set tokenizer and lengths in the module itself, where plain sentence-transformers reads them."""
    longest = int(getattr(first.config, "max_position_embeddings", 0) or 10**6)
    wanted = max(settings.query_max_tokens, settings.passage_max_tokens)
    if wanted > longest:
        raise ArtifactError(f"{settings.backbone} reads at most {longest} tokens, not {wanted}", "lower the max_tokens")
    first.processor = plain_tokenizer(first.tokenizer, append_eos=settings.append_eos)
    first.max_seq_length = settings.passage_max_tokens
    first.tokenizer.model_max_length = wanted
    first.query_length = settings.query_max_tokens
    first.document_length = settings.passage_max_tokens


def _prompts(settings: EncoderSettings) -> dict[str, str]:
    return {"query": settings.query_prompt, "document": settings.passage_prompt}


def _ends_in_eos(tokenizer: Any) -> bool:
    eos = getattr(tokenizer, "eos_token_id", None)
    return eos is not None and tokenizer("a")["input_ids"][-1:] == [eos]


def _dtype_of(wanted: EncoderChoice) -> dict[str, Any]:
    return {} if wanted.dtype is None else {"dtype": getattr(torch, wanted.dtype)}


def _is_bare(name: str) -> bool:
    """Whether ``name`` is a local folder without sentence-transformers files; hub models are checked when loaded."""
    folder = Path(name)
    return folder.is_dir() and not (folder / "modules.json").is_file()


def _check_path(name: str) -> None:
    if Path(name).is_file():
        raise ArtifactError(f"{name} is a file, not an encoder folder")
    check_path(name, ENCODER)
