"""Open a retriever from settings or from the path of an index, wrapped for use in a rollout."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from retrieval.cache import CachedRetriever
from retrieval.config import COMPOSED, HYBRID_DEPTH, RERANK_DEPTH, RetrieverSettings
from retrieval.ingest import OnProgress, same_source
from retrieval.resilient import ResilientRetriever
from sleuth.artifacts import MANIFEST, read_manifest
from sleuth.errors import ArtifactError, ConfigError, did_you_mean
from sleuth.plugins import load_object
from sleuth.protocols import Retriever

Progress = Callable[[str], AbstractContextManager[OnProgress | None]]
"""Shows progress under a title while an index is made; see `retrieval.progress`."""


def open_retriever(
    settings: RetrieverSettings | str | Path,
    *,
    cached: bool = True,
    resilient: bool = True,
    progress: Progress | None = None,
) -> Retriever:
    """The retriever that ``settings`` name; a path is that of an index of any kind, an address
    that of a service.

    ``resilient`` adds timeout, retries and circuit breaker, ``cached`` remembers queries. An index that
    does not exist is made when ``settings.corpus`` is given. Raises ArtifactError or ConfigError.
    """
    chosen = settings
    if not isinstance(chosen, RetrieverSettings):
        chosen = RetrieverSettings.model_validate(chosen)
    retriever = _open(chosen, progress or (lambda _title: nullcontext()))
    if resilient:
        retriever = ResilientRetriever(
            retriever,
            timeout_s=chosen.patience_s,
            retries=chosen.retries,
            backoff_s=chosen.backoff_s,
            breaker_failures=chosen.breaker_failures,
            breaker_cooldown_s=chosen.breaker_cooldown_s,
        )
    return CachedRetriever(retriever, size=chosen.cache) if cached and chosen.cache else retriever


def index_kind(index: str | Path) -> str:
    """The kind that the manifest of ``index`` names."""
    path = Path(index)
    rebuild = f"sleuth index CORPUS --out {index}"
    if path.is_file():
        raise ArtifactError(f"{index} is a file, not an index", f"if it is a corpus: sleuth index {index} --out FOLDER")
    if not (path / MANIFEST).is_file():
        read_manifest(path, "index", rebuild)  # raises, and says what is missing
    try:
        kind = str(json.loads((path / MANIFEST).read_text(encoding="utf-8"))["kind"])
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(f"{path / MANIFEST} is damaged", f"make it anew with: {rebuild}") from None
    if kind not in OPENERS or kind in COMPOSED:
        kinds = OPENERS.keys() - COMPOSED.keys()
        raise ArtifactError(f"{index} is of kind '{kind}', which is no index", did_you_mean(kind, kinds))
    return kind


def _open(settings: RetrieverSettings, progress: Progress) -> Retriever:
    if settings.kind is not None and ":" in settings.kind:
        return _outside(settings.kind, settings)
    kind = settings.kind
    if kind is None:
        unmade = settings.corpus is not None and not _path(settings).exists()
        kind = ("dense" if settings.encoder else "bm25") if unmade else index_kind(_path(settings))
        foreign = settings.in_vain(kind)
        if foreign:
            raise ConfigError(f"{foreign} does nothing for {settings.index}, an index of kind {kind}", "leave it out")
    return OPENERS[kind](settings, progress)


def _outside(kind: str, settings: RetrieverSettings) -> Retriever:
    make = load_object(kind)
    try:
        retriever = make(**settings.options)
    except TypeError as error:
        raise ConfigError(f"retriever {kind} does not take these options: {error}") from error
    if not isinstance(retriever, Retriever):
        raise ConfigError(f"{kind} is no Retriever", "it needs a fingerprint and search(queries, k)")
    return retriever


def _open_bm25(settings: RetrieverSettings, progress: Progress) -> Retriever:
    from retrieval.bm25 import K1, B, BM25Retriever, build_bm25, rebuild_command

    index = _path(settings)
    if settings.corpus is not None and not index.exists():
        with progress(f"indexing {settings.corpus}") as on_progress:
            build_bm25(
                settings.corpus,
                index,
                k1=K1 if settings.k1 is None else settings.k1,
                b=B if settings.b is None else settings.b,
                threads=settings.threads,
                on_progress=on_progress,
            )
    retriever = BM25Retriever(index, k1=settings.k1, b=settings.b, threads=settings.threads)
    if settings.corpus is not None and not same_source(retriever.manifest["corpus"], settings.corpus):
        raise ArtifactError(
            f"{index} was made from other passages than {settings.corpus}",
            f"make it anew with: {rebuild_command(index, settings.corpus)}",
        )
    return retriever


def _open_dense(settings: RetrieverSettings, progress: Progress) -> Retriever:
    from retrieval.dense.build import build_dense, rebuild_command
    from retrieval.dense.retriever import open_dense, read_dense_manifest
    from retrieval.encoders.loading import load_encoder, reload_encoder

    index, corpus = _path(settings), settings.corpus
    encoder = load_encoder(settings.encoder) if settings.encoder is not None else None
    if corpus is not None and not index.exists():
        if encoder is None:
            raise ConfigError(f"{index} does not exist, and no encoder is named to make it with", "set encoder")
        with progress(f"encoding {corpus}") as on_progress:
            build_dense(
                corpus,
                index,
                encoder,
                index_type=settings.index_type or "flat",
                dtype=settings.dtype or "float32",
                on_progress=on_progress,
            )
    manifest = read_dense_manifest(index)
    source = manifest["encoder"]["source"]
    if corpus is not None and not same_source(manifest["corpus"], corpus):
        raise ArtifactError(
            f"{index} was made from other passages than {corpus}",
            f"make it anew with: {rebuild_command(index, corpus, source or 'ENCODER', manifest)}",
        )
    for name in ("index_type", "dtype"):
        wanted = getattr(settings, name)
        if wanted not in (None, manifest[name]):
            how = manifest | {name: wanted}
            raise ArtifactError(
                f"{index} has the {name} {manifest[name]}, not {wanted}",
                f"make it anew with: {rebuild_command(index, manifest['corpus']['path'], source or 'ENCODER', how)}",
            )
    if encoder is None:
        if source is None:
            raise ConfigError(f"{index} does not say where its encoder lies", "set encoder to its folder")
        encoder = reload_encoder(source, manifest["encoder"]["settings"])
    return open_dense(index, encoder, ef_search=settings.ef_search, nprobe=settings.nprobe)


def _open_faiss(settings: RetrieverSettings, _progress: Progress) -> Retriever:
    from retrieval.dense.published import open_published
    from retrieval.encoders.loading import load_encoder

    assert settings.faiss_file is not None
    assert settings.corpus is not None
    assert settings.encoder is not None
    encoder = load_encoder(settings.encoder)
    tuning = {"ef_search": settings.ef_search, "nprobe": settings.nprobe}
    return open_published(settings.faiss_file, settings.corpus, encoder, **tuning)


def _open_lucene(settings: RetrieverSettings, _progress: Progress) -> Retriever:
    from retrieval.lucene import LuceneRetriever

    return LuceneRetriever(_path(settings), k1=settings.k1, b=settings.b, threads=settings.threads)


def _open_hybrid(settings: RetrieverSettings, progress: Progress) -> Retriever:
    from retrieval.combine.hybrid import HybridRetriever, check_parameters

    depth = settings.depth or HYBRID_DEPTH
    check_parameters(len(settings.parts), settings.fusion, settings.weights, settings.rrf_k, depth)
    parts = [_open(part, progress) for part in settings.parts]
    return HybridRetriever(parts, fusion=settings.fusion, weights=settings.weights, rrf_k=settings.rrf_k, depth=depth)


def _open_rerank(settings: RetrieverSettings, progress: Progress) -> Retriever:
    from retrieval.combine.rerank import CrossEncoderScorer, RerankRetriever

    assert settings.model is not None
    assert settings.inner is not None
    inner = _open(settings.inner, progress)
    return RerankRetriever(inner, CrossEncoderScorer(settings.model), depth=settings.depth or RERANK_DEPTH)


def _open_remote(settings: RetrieverSettings, _progress: Progress) -> Retriever:
    from retrieval.service.remote import RemoteRetriever

    assert settings.url is not None
    return RemoteRetriever(settings.url, timeout_s=settings.patience_s)


def _path(settings: RetrieverSettings) -> Path:
    if settings.index is None:
        raise ConfigError("the retriever has no index", "set retriever.index to a folder")
    return settings.index


OPENERS: dict[str, Callable[[RetrieverSettings, Progress], Retriever]] = {
    "bm25": _open_bm25,
    "dense": _open_dense,
    "faiss": _open_faiss,
    "lucene": _open_lucene,
    "hybrid": _open_hybrid,
    "rerank": _open_rerank,
    "remote": _open_remote,
}
