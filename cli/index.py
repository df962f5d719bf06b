"""``sleuth index``: make an index of passages that retrievers can search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def index(
    corpus: Annotated[Path, typer.Argument(help="Passages: a .jsonl or .jsonl.gz file, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="Folder that the index becomes.")],
    kind: Annotated[str, typer.Option(help="Kind of index: bm25.")] = "bm25",
    k1: Annotated[float, typer.Option(help="BM25 term saturation, the index's default.")] = 0.9,
    b: Annotated[float, typer.Option(help="BM25 length normalisation, the index's default.")] = 0.4,
    threads: Annotated[int, typer.Option(help="Threads that index.")] = 2,
    layout: Annotated[
        str | None, typer.Option(help="beir, search_r1 or pyserini; found from the first row when not given.")
    ] = None,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave bad rows out and count them.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index that exists.")] = False,
) -> None:
    """Make an index of CORPUS (BEIR, Search-R1 or pyserini rows) in the folder --out."""
    from retrieval.config import KINDS
    from sleuth.errors import ConfigError, did_you_mean

    if kind not in KINDS:
        raise ConfigError(f"unknown kind of index '{kind}'", did_you_mean(kind, KINDS))
    _index_bm25(corpus, out, k1, b, threads, layout, skip_bad_rows, overwrite)


def _index_bm25(
    corpus: Path,
    out: Path,
    k1: float,
    b: float,
    threads: int,
    layout: str | None,
    skip_bad_rows: bool,
    overwrite: bool,
) -> None:
    from retrieval.bm25 import build_bm25
    from retrieval.progress import build_progress

    with build_progress(f"indexing {corpus}") as on_progress:
        built = build_bm25(
            corpus,
            out,
            k1=k1,
            b=b,
            threads=threads,
            layout=layout,
            skip_bad_rows=skip_bad_rows,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    skipped = "".join(f"; {count:,} left out: {reason}" for reason, count in sorted(built.skipped.items()))
    typer.echo(f"{built.passages:,} passages in {built.path}{skipped}", err=True)
    for row in built.examples:
        typer.echo(f"  {row}", err=True)
    typer.echo(f'try it: sleuth search {built.path} "a question"', err=True)
