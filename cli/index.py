"""``sleuth index``: builds an index of passages for retrievers to search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from retrieval.indexes import IndexInfo

Encoder = Annotated[
    str | None,
    typer.Option(help="Folder, hub name or module:Class of the encoder, a YAML file of settings, or '{backbone: …}'."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other setting that shapes an index of this kind. Repeatable."),
]


def index(
    corpus: Annotated[
        str, typer.Argument(help="Passages: a .jsonl, .tsv (.gz, .zst) or .parquet file, a folder, a hub dataset.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new index.")],
    kind: Annotated[str, typer.Option(help="bm25, dense, sparse, multivector or promptreps.")] = "bm25",
    k1: Annotated[float | None, typer.Option(help="bm25: term saturation, the index's default. [0.9]")] = None,
    b: Annotated[float | None, typer.Option(help="bm25: length normalisation, the index's default. [0.4]")] = None,
    language: Annotated[
        str | None, typer.Option(help="bm25: of the passages, as a code: de, zh. \\[en]", metavar="CODE")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that index. \\[bm25: 2, encoders: what encoder and machine suit]")
    ] = None,
    encoder: Encoder = None,
    index_type: Annotated[
        str | None, typer.Option(help="flat (exact); dense: hnsw, ivfpq; multivector: residual, muvera. \\[flat]")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Storage type of the vectors: float32, float16; dense: int8. \\[float32]")
    ] = None,
    set_: Set = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Batch size of the encoder. [32]")] = None,
    device: Annotated[
        str | None, typer.Option(help="Where the encoder runs: cpu, cuda, cuda:1. \\[the first GPU]")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Encoding processes; more than 1 run on Ray. [1]")] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster for the workers, or auto.")] = None,
    layout: Annotated[
        str | None, typer.Option(help="beir, search_r1, pyserini, tevatron, dpr or bright. \\[told from the first row]")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=1, help="Cut each passage into windows of so many words. \\[whole passages]")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="Words from one window to the next; fewer than --window overlap. \\[--window]"),
    ] = None,
    window_unit: Annotated[str, typer.Option(help="What --window and --stride count: words or sentences.")] = "words",
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave bad rows out and count them.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing index.")] = False,
) -> None:
    """Build an index of CORPUS (BEIR, Search-R1, pyserini, Tevatron or DPR rows) in the folder --out.

    The same command resumes an interrupted build of an index that an encoder makes.
    """
    from sleuth.artifacts import check_destination
    from sleuth.errors import ConfigError, did_you_mean
    from sleuth.files import on_hub
    from workflows.indexing import (
        CorpusOptions,
        Encoding,
        build_bm25_index,
        build_encoded_index,
        kinds_made,
        windows_asked,
    )

    kinds = kinds_made()
    if kind not in kinds:
        raise ConfigError(f"unknown kind of index '{kind}'", did_you_mean(kind, kinds))
    bm25: dict[str, object] = {"--k1": k1, "--b": b, "--language": language}
    encoded: dict[str, object] = {
        "--encoder": encoder,
        "--index-type": index_type,
        "--dtype": dtype,
        "--batch-size": batch_size,
    }
    encoded |= {"--device": device, "--workers": workers, "--address": address, "--set": set_ or None}
    foreign = [option for option, value in (encoded if kind == "bm25" else bm25).items() if value is not None]
    if foreign:
        other = "the encoder's" if kind == "bm25" else "bm25"
        raise ConfigError(
            f"{foreign[0]} does not apply to an index of kind {kind}", f"add --kind {other}, or leave it out"
        )
    if kind != "bm25" and encoder is None:
        raise ConfigError(f"an index of kind {kind} needs an encoder", "add --encoder with a folder or hub name")
    beside = [*([] if on_hub(corpus) else [corpus]), *([encoder] if encoder else [])]
    check_destination(out, overwrite, kinds, beside)
    cut = windows_asked(window, stride, window_unit)
    options: CorpusOptions = {"layout": layout, "window": cut, "skip_bad_rows": skip_bad_rows, "overwrite": overwrite}
    if encoder is None:
        built = build_bm25_index(corpus, out, k1, b, language, threads, options)
    else:
        given = {"index_type": index_type, "dtype": dtype}
        shape = {name: value for name, value in given.items() if value is not None}
        how = Encoding(
            encoder, kind, shape, tuple(set_ or ()), batch_size or 32, device, threads, workers or 1, address
        )
        built = build_encoded_index(corpus, out, how, options)
    _report(built)


def _report(built: IndexInfo) -> None:
    skipped = "".join(f"; {count:,} left out: {reason}" for reason, count in sorted(built.skipped.items()))
    what = "passages" if built.whole is None else f"windows of {built.whole:,} passages"
    typer.echo(f"{built.passages:,} {what} in {built.path}{skipped}", err=True)
    if built.passages == built.whole:
        typer.echo("no passage is longer than a window, so that each stands whole: a smaller --window cuts", err=True)
    for row in built.examples:
        typer.echo(f"  {row}", err=True)
    typer.echo(f'try it: sleuth search {built.path} "a question"', err=True)
