"""Builds an index of passages: BM25, or dense, which Ray's workers may encode."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from retrieval.indexes import IndexInfo


class CorpusOptions(TypedDict):
    """Options for reading a corpus and writing an index, for every kind."""

    layout: str | None
    skip_bad_rows: bool
    overwrite: bool


def build_bm25_index(
    corpus: str, out: Path, k1: float | None, b: float | None, threads: int | None, options: CorpusOptions
) -> IndexInfo:
    from retrieval.bm25 import K1, B, build_bm25
    from retrieval.progress import build_progress

    with build_progress(f"indexing {corpus}") as on_progress:
        return build_bm25(
            corpus,
            out,
            k1=K1 if k1 is None else k1,
            b=B if b is None else b,
            threads=threads or 2,
            on_progress=on_progress,
            **options,
        )


def build_dense_index(
    corpus: str,
    out: Path,
    encoder: str,
    how: dict[str, Any],
    options: CorpusOptions,
    *,
    threads: int | None,
    workers: int,
    address: str | None,
) -> IndexInfo:
    """``encoder``: a folder, hub name, dotted path or YAML file of settings; ``how``: arguments of ``build_dense``.

    More than one of ``workers`` encode on the Ray at ``address``, or on one that ends with the build.
    """
    from retrieval.dense.build import build_dense
    from retrieval.encoders.config import EncoderKind
    from retrieval.encoders.loading import open_encoder
    from retrieval.progress import build_progress
    from sleuth.settings import read_layers, validate
    from workflows.logs import quiet_libraries
    from workflows.wiring import limit_threads

    quiet_libraries()
    limit_threads(threads)
    is_file = encoder.endswith((".yaml", ".yml"))
    chosen: str | EncoderKind = validate(EncoderKind, read_layers(Path(encoder)), encoder) if is_file else encoder
    loaded = open_encoder(chosen)
    with build_progress(f"encoding {corpus}") as on_progress:
        if workers == 1:
            return build_dense(corpus, out, loaded, on_progress=on_progress, **how, **options)
        from agent.cluster.config import ClusterSettings
        from sleuth.layout import RunLayout
        from workflows.sharded import encoding_workers

        cluster, token = ClusterSettings(workers=workers, address=address), RunLayout(out).token
        with encoding_workers(cluster, chosen, loaded, threads, how["batch_size"], token) as elsewhere:
            return build_dense(corpus, out, loaded, elsewhere=elsewhere, on_progress=on_progress, **how, **options)
