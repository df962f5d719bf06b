"""``sleuth index``: builds an index of passages for retrievers to search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer

if TYPE_CHECKING:
    from retrieval.indexes import IndexInfo


KINDS = ("bm25", "dense")

Encoder = Annotated[
    str | None, typer.Option(help="dense: folder or hub name of the encoder, or a YAML file with its settings.")
]


def index(
    corpus: Annotated[Path, typer.Argument(help="Passages: a .jsonl or .jsonl.gz file, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="Folder of the new index.")],
    kind: Annotated[str, typer.Option(help="Kind of index: bm25 or dense.")] = "bm25",
    k1: Annotated[float | None, typer.Option(help="bm25: term saturation, the index's default. [0.9]")] = None,
    b: Annotated[float | None, typer.Option(help="bm25: length normalisation, the index's default. [0.4]")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that index. [bm25: 2, dense: what encoder and machine suit]")
    ] = None,
    encoder: Encoder = None,
    index_type: Annotated[str | None, typer.Option(help="dense: flat (exact), hnsw or ivfpq. [flat]")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="dense: storage type of the vectors: float32, float16 or int8. [float32]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="dense: batch size of the encoder. [32]")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="dense: encoding processes; more than 1 run on Ray. [1]")
    ] = None,
    address: Annotated[str | None, typer.Option(help="dense: a running Ray cluster for the workers, or auto.")] = None,
    layout: Annotated[
        str | None, typer.Option(help="beir, search_r1 or pyserini; detected from the first row by default.")
    ] = None,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave bad rows out and count them.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing index.")] = False,
) -> None:
    """Build an index of CORPUS (BEIR, Search-R1 or pyserini rows) in the folder --out.

    The same command resumes an interrupted build of a dense index.
    """
    from sleuth.artifacts import check_destination
    from sleuth.errors import ConfigError, did_you_mean

    if kind not in KINDS:
        raise ConfigError(f"unknown kind of index '{kind}'", did_you_mean(kind, KINDS))
    bm25 = {"--k1": k1, "--b": b}
    dense = {"--encoder": encoder, "--index-type": index_type, "--dtype": dtype, "--batch-size": batch_size}
    dense |= {"--workers": workers, "--address": address}
    foreign = [option for option, value in (dense if kind == "bm25" else bm25).items() if value is not None]
    if foreign:
        other = "dense" if kind == "bm25" else "bm25"
        raise ConfigError(
            f"{foreign[0]} does not apply to an index of kind {kind}", f"add --kind {other}, or leave it out"
        )
    if kind == "dense" and encoder is None:
        raise ConfigError("an index of kind dense needs an encoder", "add --encoder with a folder or hub name")
    check_destination(out, overwrite, KINDS, [corpus, *([encoder] if encoder else [])])
    rows: Rows = {"layout": layout, "skip_bad_rows": skip_bad_rows, "overwrite": overwrite}
    if encoder is None:
        built = _build_bm25(corpus, out, k1, b, threads or 2, rows)
    else:
        how = {"index_type": index_type or "flat", "dtype": dtype or "float32", "batch_size": batch_size or 32}
        built = _build_dense(corpus, out, encoder, threads, how, rows, workers or 1, address)
    _report(built)


class Rows(TypedDict):
    """Options for reading a corpus and writing an index, for every kind."""

    layout: str | None
    skip_bad_rows: bool
    overwrite: bool


def _build_bm25(corpus: Path, out: Path, k1: float | None, b: float | None, threads: int, rows: Rows) -> IndexInfo:
    from retrieval.bm25 import K1, B, build_bm25
    from retrieval.progress import build_progress

    with build_progress(f"indexing {corpus}") as on_progress:
        return build_bm25(
            corpus,
            out,
            k1=K1 if k1 is None else k1,
            b=B if b is None else b,
            threads=threads,
            on_progress=on_progress,
            **rows,
        )


def _build_dense(
    corpus: Path,
    out: Path,
    encoder: str,
    threads: int | None,
    how: dict[str, Any],
    rows: Rows,
    workers: int,
    address: str | None,
) -> IndexInfo:
    from retrieval.dense.build import build_dense
    from retrieval.encoders.config import EncoderChoice
    from retrieval.encoders.loading import load_encoder
    from retrieval.progress import build_progress
    from sleuth.settings import load_settings
    from workflows.logs import quiet_libraries
    from workflows.wiring import limit_threads

    quiet_libraries()
    limit_threads(threads)
    chosen: str | EncoderChoice = encoder
    if encoder.endswith((".yaml", ".yml")):
        chosen = load_settings(EncoderChoice, encoder)
    loaded = load_encoder(chosen)
    with build_progress(f"encoding {corpus}") as on_progress:
        if workers == 1:
            return build_dense(corpus, out, loaded, on_progress=on_progress, **how, **rows)
        from agent.cluster.config import ClusterSettings
        from sleuth.layout import RunLayout
        from workflows.sharded import encoding_workers

        cluster, token = ClusterSettings(workers=workers, address=address), RunLayout(out).token
        with encoding_workers(cluster, chosen, loaded, threads, how["batch_size"], token) as elsewhere:
            return build_dense(corpus, out, loaded, elsewhere=elsewhere, on_progress=on_progress, **how, **rows)


def _report(built: IndexInfo) -> None:
    skipped = "".join(f"; {count:,} left out: {reason}" for reason, count in sorted(built.skipped.items()))
    typer.echo(f"{built.passages:,} passages in {built.path}{skipped}", err=True)
    for row in built.examples:
        typer.echo(f"  {row}", err=True)
    typer.echo(f'try it: sleuth search {built.path} "a question"', err=True)
