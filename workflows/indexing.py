"""Builds an index of passages, of the kinds that `sleuth index` makes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from retrieval.encoders.config import EncoderKind
from sleuth.layout import RunLayout
from sleuth.settings import read_layers, validate
from workflows.logs import quiet_libraries
from workflows.wiring import limit_threads

if TYPE_CHECKING:
    from retrieval.indexes import IndexInfo

THREADS = 2
"""Of Lucene, and of each process that encodes elsewhere, unless told otherwise."""


class Rows(TypedDict):
    """Options for reading a corpus and writing an index, for every kind."""

    layout: str | None
    skip_bad_rows: bool
    overwrite: bool


def index_bm25(corpus: str, out: Path, k1: float | None, b: float | None, threads: int | None, rows: Rows) -> IndexInfo:
    from retrieval.bm25 import K1, B, build_bm25
    from retrieval.progress import build_progress

    with build_progress(f"indexing {corpus}") as on_progress:
        return build_bm25(
            corpus,
            out,
            k1=K1 if k1 is None else k1,
            b=B if b is None else b,
            threads=threads or THREADS,
            on_progress=on_progress,
            **rows,
        )


def index_dense(
    corpus: str,
    out: Path,
    encoder: str,
    threads: int | None,
    how: dict[str, Any],
    rows: Rows,
    workers: int,
    address: str | None,
) -> IndexInfo:
    """Encode with ``encoder``: a folder, a hub name, a dotted path, or a YAML file with settings.

    More than one of ``workers`` encode on Ray.
    """
    from retrieval.dense.build import build_dense
    from retrieval.encoders.loading import open_encoder
    from retrieval.progress import build_progress

    quiet_libraries()
    limit_threads(threads)
    chosen: str | EncoderKind = encoder
    if encoder.endswith((".yaml", ".yml")):
        chosen = validate(EncoderKind, read_layers(Path(encoder)), encoder)
    loaded = open_encoder(chosen)
    with build_progress(f"encoding {corpus}") as on_progress:
        if workers == 1:
            return build_dense(corpus, out, loaded, on_progress=on_progress, **how, **rows)
        from agent.cluster.config import ClusterSettings
        from workflows.sharded import encoding_workers

        cluster, token = ClusterSettings(workers=workers, address=address), RunLayout(out).token
        with encoding_workers(cluster, chosen, loaded, threads or THREADS, how["batch_size"], token) as elsewhere:
            return build_dense(corpus, out, loaded, elsewhere=elsewhere, on_progress=on_progress, **how, **rows)
