"""``sleuth index``: builds an index of passages for retrievers to search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from retrieval.indexes import IndexInfo

KINDS = ("bm25", "dense")

Encoder = Annotated[
    str | None,
    typer.Option(help="dense: folder, hub name or module:Class of the encoder, or a YAML file with its settings."),
]


def index(
    corpus: Annotated[
        str, typer.Argument(help="Passages: a .jsonl, .tsv (.gz, .zst) or .parquet file, a folder, a hub dataset.")
    ],
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
        str | None, typer.Option(help="beir, search_r1, pyserini, tevatron, dpr or bright. [told from the first row]")
    ] = None,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave bad rows out and count them.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing index.")] = False,
) -> None:
    """Build an index of CORPUS (BEIR, Search-R1, pyserini, Tevatron or DPR rows) in the folder --out.

    The same command resumes an interrupted build of a dense index.
    """
    from sleuth.artifacts import check_destination
    from sleuth.errors import ConfigError, did_you_mean
    from sleuth.files import on_hub
    from workflows.indexing import CorpusOptions, build_bm25_index, build_dense_index

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
    check_destination(out, overwrite, KINDS, [*([] if on_hub(corpus) else [corpus]), *([encoder] if encoder else [])])
    options: CorpusOptions = {"layout": layout, "skip_bad_rows": skip_bad_rows, "overwrite": overwrite}
    if encoder is None:
        built = build_bm25_index(corpus, out, k1, b, threads, options)
    else:
        how = {"index_type": index_type or "flat", "dtype": dtype or "float32", "batch_size": batch_size or 32}
        built = build_dense_index(
            corpus, out, encoder, how, options, threads=threads, workers=workers or 1, address=address
        )
    _report(built)


def _report(built: IndexInfo) -> None:
    skipped = "".join(f"; {count:,} left out: {reason}" for reason, count in sorted(built.skipped.items()))
    typer.echo(f"{built.passages:,} passages in {built.path}{skipped}", err=True)
    for row in built.examples:
        typer.echo(f"  {row}", err=True)
    typer.echo(f'try it: sleuth search {built.path} "a question"', err=True)
