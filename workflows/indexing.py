"""Builds an index of passages: BM25, or of an encoder, with which Ray's workers may encode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from retrieval.encoders.config import EncoderKind
    from retrieval.encoders.index_config import EncodedIndexSettings
    from retrieval.indexes import IndexInfo
    from retrieval.windows_config import WindowSettings


class CorpusOptions(TypedDict):
    """Options for reading a corpus and writing an index, for every kind."""

    layout: str | None
    window: WindowSettings | None
    skip_bad_rows: bool
    overwrite: bool


def build_bm25_index(
    corpus: str,
    out: Path,
    k1: float | None,
    b: float | None,
    language: str | None,
    threads: int | None,
    options: CorpusOptions,
) -> IndexInfo:
    from retrieval.bm25 import ENGLISH, K1, B, build_bm25
    from retrieval.progress import build_progress

    with build_progress(f"indexing {corpus}") as on_progress:
        return build_bm25(
            corpus,
            out,
            k1=K1 if k1 is None else k1,
            b=B if b is None else b,
            language=ENGLISH if language is None else language,
            threads=threads or 2,
            on_progress=on_progress,
            **options,
        )


@dataclass(frozen=True, slots=True)
class Encoding:
    """How an index is made by an encoder.

    ``encoder``: a folder, hub name, dotted path, YAML file of settings or a mapping; ``shape`` and ``overrides``
    (``key=value``): settings of the index. More than one of ``workers`` encode on the Ray at ``address``, or on one
    that ends with the build.
    """

    encoder: str
    kind: str
    shape: Mapping[str, Any]
    overrides: Sequence[str] = ()
    batch_size: int = 32
    device: str | None = None
    threads: int | None = None
    workers: int = 1
    address: str | None = None


def windows_asked(size: int | None, stride: int | None, unit: str) -> WindowSettings | None:
    """The windows that the options of a command ask for. Raises ConfigError for a stride above the window."""
    from retrieval.windows_config import WindowSettings
    from sleuth.errors import ConfigError, did_you_mean

    if unit not in ("words", "sentences"):
        raise ConfigError(f"windows of {unit} are not known", did_you_mean(unit, ("words", "sentences")))
    if size is None:
        if stride is not None or unit != "words":
            option = "--stride" if stride is not None else "--window-unit"
            raise ConfigError(f"{option} says how windows lie, and there are none", "add --window with their length")
        return None
    if stride is not None and stride > size:
        raise ConfigError(
            f"--stride {stride} leaves out what lies between windows of {size} {unit}", f"at most --stride {size}"
        )
    return WindowSettings.model_validate({unit: size, "stride": stride})


def kinds_made() -> list[str]:
    """The kinds of index that can be made."""
    from retrieval.config import index_kinds
    from retrieval.encoders.index_config import EncodedIndexSettings

    return ["bm25", *(kind for kind, own in index_kinds().items() if issubclass(own, EncodedIndexSettings))]


def build_encoded_index(corpus: str, out: Path, how: Encoding, options: CorpusOptions) -> IndexInfo:
    from retrieval.encoders.indexes import build_encoded
    from retrieval.encoders.loading import open_encoder
    from retrieval.progress import build_progress
    from workflows.logs import quiet_libraries
    from workflows.wiring import limit_threads

    settings = _index_settings(corpus, out, how)
    quiet_libraries()
    limit_threads(how.threads)
    chosen = _encoder_named(how.encoder, settings)
    loaded = open_encoder(chosen, device=how.device)
    kind, made = settings.index_of(), settings.made()
    with build_progress(f"encoding {corpus}") as on_progress:
        rest = {"batch_size": how.batch_size, "on_progress": on_progress, **options}
        if how.workers == 1:
            return build_encoded(kind, corpus, out, loaded, made, **rest)
        from agent.cluster.config import ClusterSettings
        from sleuth.layout import RunLayout
        from workflows.sharded import encoding_workers

        cluster, token = ClusterSettings(workers=how.workers, address=how.address), RunLayout(out).token
        with encoding_workers(cluster, chosen, loaded, how.threads, how.batch_size, token) as elsewhere:
            return build_encoded(kind, corpus, out, loaded, made, elsewhere=elsewhere, **rest)


def _encoder_named(given: str, index: EncodedIndexSettings) -> str | EncoderKind:
    from retrieval.encoders.config import EncoderKind
    from sleuth.settings import apply_override, read_layers, validate

    if given.endswith((".yaml", ".yml")):
        return validate(EncoderKind, index.named(read_layers(Path(given))), given)
    values: dict[str, Any] = {"encoder": given}
    if given.lstrip().startswith("{"):
        apply_override(values, f"encoder={given}")
    named = index.named(values["encoder"])
    return named if isinstance(named, str) else validate(EncoderKind, named, "--encoder")


def _index_settings(corpus: str, out: Path, how: Encoding) -> EncodedIndexSettings:
    """The settings of the index as a retriever's. Raises ConfigError for one that does not shape an index."""
    from retrieval.config import RetrieverSettings
    from retrieval.encoders.index_config import EncodedIndexSettings
    from sleuth.errors import ConfigError, did_you_mean
    from sleuth.settings import apply_override, validate

    values: dict[str, Any] = dict(how.shape)
    for override in how.overrides:
        apply_override(values, override)
    own = RetrieverSettings.class_for({"kind": how.kind, "index": out})
    assert issubclass(own, EncodedIndexSettings)
    wrong = next((name for name in values if name not in own.MADE), None)
    if wrong is not None:
        raise ConfigError(f"{wrong} does not shape an index of kind {how.kind}", did_you_mean(wrong, own.MADE))
    return validate(own, {**values, "kind": how.kind, "index": out, "corpus": corpus}, "the index")
