"""Makes and opens the index of a family: what all of them check, and the part that each family has of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from retrieval.encoders.build import build_index, describe_encoder
from retrieval.encoders.family import PassageEncoder
from retrieval.encoders.modalities import check_index
from retrieval.encoders.pieces import IndexWriter
from retrieval.encoders.retriever import EncodedIndex, EncoderRetriever
from retrieval.indexes import IndexInfo
from retrieval.store import PassageStore
from retrieval.windows_config import source_named
from sleuth.artifacts import MANIFEST, fingerprint_of, read_manifest
from sleuth.errors import ArtifactError, ConfigError
from sleuth.settings import Settings

_DECISIVE = (
    "passage_prompt",
    "pooling",
    "passage_max_tokens",
    "append_eos",
    "normalise",
    "similarity",
    "include_prompt",
    "attention",
    "dimensions",
    "head",
    "special_tokens",
    "max_terms",
)
_CHECKED = ("kind", "format", "passages_sha256", "indexed")
_HELD: Mapping[str, type] = {
    "passages": int,
    "passages_sha256": str,
    "indexed": str,
    "encoder": dict,
    "corpus": dict,
    "files": dict,
}
"""What the manifest of every index has, beside its kind's own entries."""


class IndexKind(Protocol):
    """The index of one family of encoders."""

    @property
    def kind(self) -> str:
        """That of the encoders it takes, of the retrievers that search it, and of its manifest."""
        ...

    @property
    def format(self) -> int: ...

    @property
    def usual(self) -> Mapping[str, object]:
        """What an index is made with if nothing is chosen; all of it stands in the manifest."""
        ...

    @property
    def identity(self) -> tuple[str, ...]:
        """Entries of the manifest on which hits depend, beside the passages and the encoder."""
        ...

    def writer(self, folder: Path, count: int, encoder: PassageEncoder, made: Mapping[str, Any]) -> IndexWriter:
        """What writes ``count`` encoded passages into ``folder``. Raises ConfigError for choices that do not fit."""
        ...

    def load(
        self, index: Path, manifest: Mapping[str, Any], encoder: PassageEncoder, tuning: Mapping[str, Any]
    ) -> EncodedIndex:
        """The finished index. Raises ArtifactError, or ConfigError where ``tuning`` does not apply."""
        ...


def build_encoded(
    kind: IndexKind, corpus: str | Path, out: str | Path, encoder: PassageEncoder, made: Mapping[str, Any], **how: Any
) -> IndexInfo:
    """Encode every passage of ``corpus`` into an index in the folder ``out``, made as ``made`` says.

    ``how`` and errors are those of `build_index`; ArtifactError also for an encoder of another family.
    """
    check_family(kind, encoder, out)
    chosen = {**kind.usual, **made}

    def open_writer(folder: Path, count: int) -> IndexWriter:
        return kind.writer(folder, count, encoder, chosen)

    return build_index(corpus, out, encoder, open_writer, format_version=kind.format, **how)


def open_encoded(
    kind: IndexKind,
    index: str | Path,
    encoder: PassageEncoder,
    tuning: Mapping[str, Any] | None = None,
    query_batch: int | None = None,
) -> EncoderRetriever:
    """The retriever over an index made by `build_encoded`, with the encoder that made it.

    A different query tower is accepted; a different passage tower, prompt or pooling raises ArtifactError.
    """
    manifest = read_encoded_manifest(kind, index)
    check_family(kind, encoder, index)
    _check_encoder(kind, index, manifest, encoder)
    _check_files(kind, index, manifest)
    loaded = kind.load(Path(index), manifest, encoder, tuning or {})
    identity: dict[str, Any] = {key: manifest[key] for key in (*_CHECKED, *kind.identity)}
    identity |= {"encoder": encoder.fingerprint, **(tuning or {})}
    return EncoderRetriever(encoder, loaded, PassageStore(index), str(index), fingerprint_of(identity), query_batch)


def read_encoded_manifest(kind: IndexKind, index: str | Path) -> dict[str, Any]:
    """The manifest of an index. Raises ArtifactError if there is none or it has another format."""
    manifest = read_manifest(index, kind.kind, rebuild_command(kind, index))
    if manifest.get("format") != kind.format:
        raise ArtifactError(
            f"{index} has format {manifest.get('format')}, this version reads {kind.format}",
            f"rebuild it with: {rebuild_command(kind, index)}",
        )
    typed = all(isinstance(manifest.get(name), held) for name, held in _HELD.items())
    if not typed or any(name not in manifest for name in kind.identity):
        raise ArtifactError(f"{Path(index) / MANIFEST} is damaged", f"rebuild it with: {rebuild_command(kind, index)}")
    return manifest


def rebuild_command(
    kind: IndexKind,
    index: str | Path,
    corpus: object = "CORPUS",
    encoder: object = "ENCODER",
    how: Mapping[str, Any] | None = None,
) -> str:
    """The command that rebuilds ``index``; ``how`` is its manifest, or the relevant part of it."""
    command = f"sleuth index {corpus} --out {index} --kind {kind.kind} --encoder {encoder}"
    chosen = how or {}
    for name, usual in kind.usual.items():
        if chosen.get(name, usual) != usual:
            command += f" --set {name}={chosen[name]}"
    return f"{command} --overwrite"


def check_family(kind: IndexKind, encoder: PassageEncoder, index: str | Path) -> None:
    if encoder.family.kind != kind.kind:
        raise ConfigError(
            f"{index} is an index of kind {kind.kind}, but {encoder.source or 'the encoder'} is an encoder of kind "
            f"{encoder.family.kind}",
            f"choose an encoder of kind {kind.kind}, or make an index with --kind {encoder.family.kind}",
        )


def _check_encoder(kind: IndexKind, index: str | Path, manifest: Mapping[str, Any], encoder: PassageEncoder) -> None:
    check_index(str(index), manifest.get("modalities", ["text"]), encoder.modalities, str(encoder.source))
    made_with = manifest["encoder"]
    if encoder.tower_fingerprint("passage") == made_with["passage_fingerprint"]:
        return
    given = describe_encoder(encoder)
    rebuilt = rebuild_command(kind, index, source_named(manifest["corpus"]), given["source"] or "ENCODER", manifest)
    raise ArtifactError(
        f"{index} was made with another encoder than {encoder.source or 'this one'}: "
        f"{_difference(made_with['settings'], encoder.settings)}",
        f"open it with {made_with['source'] or 'the encoder that made it'}, or rebuild it with: {rebuilt}",
    )


def _difference(made_with: Mapping[str, Any], settings: Settings) -> str:
    """The first differing setting that affects passages; if none differs, it is the weights."""
    for name in _DECISIVE:
        mine, theirs = getattr(settings, name, None), made_with.get(name)
        if mine != theirs:
            return f"its {name} is {mine!r}, the index has {theirs!r}"
    return "its weights or its tokenizer differ"


def _check_files(kind: IndexKind, index: str | Path, manifest: Mapping[str, Any]) -> None:
    for name, size in manifest["files"].items():
        path = Path(index) / name
        found = path.stat().st_size if path.is_file() else 0
        if found != size:
            corpus, source = source_named(manifest["corpus"]), manifest["encoder"]["source"] or "ENCODER"
            raise ArtifactError(
                f"{path} is truncated: {found:,} of {size:,} bytes",
                f"rebuild the index with: {rebuild_command(kind, index, corpus, source, manifest)}",
            )
