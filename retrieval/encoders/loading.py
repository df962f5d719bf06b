"""Loads encoders from disk or hub: our own, sentence-transformers models, adapters, or new ones on a backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hub.adapters import adapter_base
from hub.models import check_path, loading
from retrieval.encoders.assembly import ENCODER, apply_settings, assembly_of
from retrieval.encoders.config import EncoderChoice, EncoderKind, EncoderSettings, family_of, is_dotted, named_family
from retrieval.encoders.encoder import KIND, Encoder, router_of, separate_towers
from retrieval.encoders.expansion import Expander, check_pieces
from retrieval.encoders.family import PassageEncoder
from retrieval.encoders.lengths import fitted
from retrieval.encoders.quiet import quiet_transformers
from sleuth.artifacts import MANIFEST
from sleuth.errors import ArtifactError, ConfigError, first_line
from sleuth.plugins import load_object
from sleuth.settings import validate

_INSTRUCTION = "Instruct: "
_WEIGHTLESS = frozenset({"backbone", "towers", "kind"})
"""Settings that describe how the weights were made; they cannot be changed for loaded weights."""


def new_encoder(settings: EncoderSettings, *, device: str | None = None, seed: int = 0) -> Encoder:
    """An encoder with the weights of ``settings.backbone``, a transformers folder, hub name or PEFT adapter.

    Layers that it lacks are drawn from ``seed``; separate towers start out equal. Raises ArtifactError if it cannot be
    loaded or put together that way.
    """
    _check_path(settings.backbone)
    _check_device(device)
    assembly = assembly_of(settings.kind)
    with loading(settings.backbone, ENCODER), quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = fitted(settings, adapter_base(settings.backbone, ENCODER) or settings.backbone)
        model = assembly.new(settings, device)
    towers = "shared" if router_of(model) is None else "separate"
    encoder = Encoder(model, settings.model_copy(update={"towers": towers}), assembly.family)
    made = separate_towers(encoder) if settings.towers == "separate" else encoder
    made.source = settings.backbone
    made.expander = expander_of(made)
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
    """The encoder in one of our folders, or in any folder or hub model of sentence-transformers.

    Settings may be given instead of a name: they override the folder's, and a ``backbone`` that is not a
    sentence-transformers model becomes a new encoder. Raises ArtifactError if there is none.
    """
    wanted = source if isinstance(source, EncoderChoice) else EncoderKind.of(backbone=str(source))
    assert isinstance(wanted, EncoderChoice)
    name, changes, device = wanted.backbone, wanted.chosen, device or wanted.device
    _check_path(name)
    _check_device(device)
    if _is_bare(name) and isinstance(source, EncoderChoice):
        return new_encoder(wanted.as_new(), device=device)
    if _is_bare(name):
        raise ArtifactError(
            f"{name} is not an encoder: it does not say how its states are pooled into one vector",
            "give a mapping: {backbone: ..., pooling: mean, query_prompt: ..., passage_prompt: ...}, or kind: sparse",
        )
    if Path(name).is_dir() and family_of(name) != wanted.kind:
        raise ArtifactError(f"{name} is an encoder of kind {family_of(name)}, not {wanted.kind}", "leave kind out")
    assembly = assembly_of(wanted.kind)
    with loading(name, ENCODER), quiet_transformers():
        model = assembly.open(name, device, _dtype_of(wanted))
    own = _saved_settings(name, wanted) or assembly.describe(model, name)
    assembly.check(model, own, wanted)
    for key in ("query_prompt", "passage_prompt"):
        _check_prompt(name, key, getattr(own, key), changes.get(key))
    changed = {key: changes[key] for key in changes.keys() - _WEIGHTLESS if changes[key] != getattr(own, key)}
    settings = own.model_copy(update=changed)
    apply_settings(model, settings, changed.keys())
    encoder = Encoder(model, settings, assembly.family, name)
    encoder.expander = expander_of(encoder)
    return encoder


def expander_of(encoder: Encoder) -> Expander | None:
    """What adds terms to the passages of ``encoder``, if its settings ask for it."""
    chosen = encoder.settings.expands
    if chosen is None:
        return None
    expander = Expander(load_encoder(chosen.encoder, device=str(encoder.device)), chosen.terms, chosen.pieces)
    if chosen.pieces:
        check_pieces(expander, encoder)
    return expander


def reload_encoder(source: str, settings: Mapping[str, Any]) -> PassageEncoder:
    """The encoder at ``source`` with the ``settings`` that were recorded for it.

    If those no longer apply, it is loaded as it is now, for the caller to compare. Raises ArtifactError.
    """
    if is_dotted(source):
        return open_encoder(EncoderKind.of(**settings))
    wanted = EncoderKind.of(**{**settings, "backbone": source})
    try:
        return open_encoder(wanted)
    except ArtifactError:
        return open_encoder(source)


def _check_prompt(name: str, key: str, own: str, wanted: str | None) -> None:
    """Refuse to change the prompt that an encoder was trained with, except for its instruction."""
    instructions = own.startswith(_INSTRUCTION) and (wanted or "").startswith(_INSTRUCTION)
    if own and wanted is not None and wanted != own and not instructions:
        raise ArtifactError(
            f"{name} was trained with the {key} {own!r}, not {wanted!r}", f"leave {key} out of the encoder's settings"
        )


def _saved_settings(name: str, wanted: EncoderChoice) -> EncoderSettings | None:
    path = Path(name) / MANIFEST
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings = content["settings"] if content["kind"] == KIND else None
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(f"{path} is damaged", "save the encoder again") from None
    return None if settings is None else validate(wanted.SETTINGS, settings, str(path))


def _dtype_of(wanted: EncoderChoice) -> dict[str, Any]:
    return {} if wanted.dtype is None else {"dtype": getattr(torch, wanted.dtype)}


def _is_bare(name: str) -> bool:
    """Whether ``name`` is a local folder of weights that are no encoder yet; hub models are checked when loaded."""
    folder = Path(name)
    return folder.is_dir() and not (folder / "modules.json").is_file() and named_family(name) is None


def _check_path(name: str) -> None:
    if Path(name).is_file():
        raise ArtifactError(f"{name} is a file, not an encoder folder")
    check_path(name, ENCODER)


def _check_device(name: str | None) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"no device '{name}' here: {first_line(error)}", "leave it out, or say cpu") from None
