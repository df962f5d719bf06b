"""``sleuth search``: searches an index for queries."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workflows.retrievers import HELP

if TYPE_CHECKING:
    from rich.console import Console

    from sleuth.explanations import Explanation
    from sleuth.protocols import Retriever
    from sleuth.types import Hit

_MAPS = Path("runs/maps")
_PARTS = 12
"""Parts of a score that are shown to people."""


def search(
    index: Annotated[str, typer.Argument(help=HELP)],
    queries: Annotated[
        list[str] | None,
        typer.Argument(help="Queries; - reads them from standard input, one per line."),
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="Hits per query; all passages of a smaller index.")] = 5,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A retriever setting: retriever.k1=1.2")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per query on standard output.")] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Show which terms, tokens or parts of a page made each hit, where the index can tell."
        ),
    ] = False,
    images: Annotated[
        list[Path] | None, typer.Option("--image", metavar="FILE", help="A picture that asks; may be repeated.")
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(
            help="Folder for each page with what the query met on it, as PNG and HTML; with --explain runs/maps."
        ),
    ] = None,
) -> None:
    """Search INDEX for each of the QUERIES, and for each picture, and print the best passages."""
    from retrieval.images import image_of_file
    from sleuth.errors import ConfigError
    from sleuth.pictures import search_mixed
    from workflows.retrievers import open_alone, retriever_settings

    if images and (explain or maps):
        raise ConfigError("--explain and --maps are for queries of words", "leave out --image or them")
    files = [str(file) for file in images or ()]
    asked = _queries(queries or [], files)
    pictures = [image_of_file(Path(file)) for file in files]
    retriever = open_alone(retriever_settings(index, overrides or []), cached=False, resilient=False)
    answers = search_mixed(retriever, [*asked, *pictures], k)
    folder = maps or (_MAPS if explain else None)
    for number, (query, found) in enumerate(zip([*asked, *files], answers, strict=True), start=1):
        reasons = _explained(retriever, query, found) if explain or maps else None
        drawn: Mapping[int, Path] = {}
        if reasons is not None and folder is not None:
            try:
                _remove_maps(folder, number)
                if maps is not None or _any_map(found, reasons):
                    drawn = _write_maps(folder, number, query, found, reasons)
            except OSError as error:  # nobody asked for this folder, so the hits matter more
                if maps is not None:
                    raise
                _warn_of_no_maps(folder, error)
                folder = None
        if json:
            _print_json(query, found, reasons, drawn)
        else:
            _print_text(query, found, reasons, drawn)


def _explained(retriever: Retriever, query: str, hits: Sequence[Hit]) -> list[Explanation]:
    from sleuth.errors import ConfigError
    from sleuth.protocols import Explains

    if not isinstance(retriever, Explains):
        raise ConfigError(
            "this retriever cannot say what made its hits",
            "--explain takes the index of an encoder, a hybrid or a reranker",
        )
    return retriever.explain(query, hits) if hits else []


def _remove_maps(folder: Path, number: int) -> None:
    """Those of an earlier query of this number, which may have had more hits; of files only what was written here."""
    from retrieval.pages.heat import GENERATOR

    for page in folder.glob(f"{number}-*.html"):
        with page.open("rb") as file:
            ours = GENERATOR.encode() in file.read(256)
        if ours:
            page.with_suffix(".png").unlink(missing_ok=True)
            page.unlink()


def _warn_of_no_maps(folder: Path, error: OSError) -> None:
    from rich.markup import escape

    from cli.console import error_console

    why = escape(f"no heat maps, as {folder} cannot be written: {error.strerror}; --maps names another folder")
    error_console().print(f"[yellow]warning:[/] {why}", soft_wrap=True)


def _write_maps(
    folder: Path, number: int, query: str, hits: Sequence[Hit], reasons: Sequence[Explanation]
) -> dict[int, Path]:
    """The pages among ``hits`` with their heat maps: ``1-2.png`` and ``1-2.html`` are of the second hit of query 1.

    Gives the picture of each by the rank of its hit.
    """
    from retrieval.pages.heat import heat_html, heat_png
    from sleuth.artifacts import atomic_write

    folder.mkdir(parents=True, exist_ok=True)
    written: dict[int, Path] = {}
    for hit, reason in zip(hits, reasons, strict=True):
        image = hit.passage.image
        if image is None or not _has_map(hit, reason):
            continue
        png = heat_png(image, reason)
        written[hit.rank] = folder / f"{number}-{hit.rank}.png"
        written[hit.rank].write_bytes(png)
        title = hit.passage.title or hit.passage.id
        atomic_write(folder / f"{number}-{hit.rank}.html", heat_html(title, query, hit.score, png, reason))
    count = f"{len(written)} heat map{'s' * (len(written) != 1)} in {folder}"
    typer.echo(count if written else "no hit has a picture whose parts are known, so no heat map", err=True)
    return written


def _any_map(hits: Sequence[Hit], reasons: Sequence[Explanation]) -> bool:
    return any(map(_has_map, hits, reasons))


def _has_map(hit: Hit, reason: Explanation) -> bool:
    return hit.passage.image is not None and any(part.box for part in reason.parts)


def _queries(given: Sequence[str], pictures: Sequence[str]) -> list[str]:
    from sleuth.errors import ConfigError

    if "-" in given and isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    asked: list[str] = []
    for query in given:
        asked += [line.strip() for line in sys.stdin if line.strip()] if query == "-" else [query]
    if not asked and not pictures:
        hint = "write one per line on standard input" if given else "write it behind the index, or name an --image"
        raise ConfigError("no query was given", hint)
    return asked


def _print_json(
    query: str, hits: Sequence[Hit], reasons: Sequence[Explanation] | None, maps: Mapping[int, Path]
) -> None:
    from cli.console import print_json

    rows = [_row(hit) for hit in hits]
    for row, reason in zip(rows, reasons or (), strict=False):
        row["explanation"] = [
            {"query_term": part.query_term, "passage_term": part.passage_term, "score": part.score}
            | ({"box": list(part.box)} if part.box else {})
            for part in reason.parts
        ]
    for row in rows:
        if row["rank"] in maps:
            row["heat_map"] = str(maps[row["rank"]])
    print_json({"query": query, "hits": rows})


def _row(hit: Hit) -> dict[str, Any]:
    passage = hit.passage
    row = {"id": passage.id, "title": passage.title, "text": passage.text, "score": hit.score, "rank": hit.rank}
    return row if passage.image is None else {**row, "image": passage.image.name}


def _print_text(
    query: str, hits: Sequence[Hit], reasons: Sequence[Explanation] | None, maps: Mapping[int, Path]
) -> None:
    from rich.console import Console
    from rich.text import Text

    from cli.console import plain

    console = Console()
    console.print(Text(plain(query), style="bold"))
    if not hits:
        console.print(Text("  nothing found", style="dim"))
    for place, hit in enumerate(hits):
        title, identifier = plain(hit.passage.title), plain(hit.passage.id)
        console.print(Text(f"{hit.rank:>3}  {hit.score:8.4f}  {title}  [{identifier}]"))
        text = plain(" ".join(hit.passage.text.split()))
        if hit.passage.image is not None:
            text = f"{text} ({plain(hit.passage.image.name)})".strip()
        console.print(Text(f"     {text}", style="dim"), overflow="ellipsis", no_wrap=True)
        if reasons is not None:
            _print_parts(console, hit.score, reasons[place])
            if hit.rank in maps:
                console.print(Text(f"     heat map: {plain(str(maps[hit.rank]))}", style="dim"), soft_wrap=True)


def _print_parts(console: Console, score: float, reason: Explanation) -> None:
    from rich.text import Text

    from cli.console import plain

    for part in reason.parts[:_PARTS]:
        one, other = plain(part.query_term), plain(part.passage_term)
        share = f"{100 * part.score / score:4.0f} %" if score else ""
        console.print(Text(f"     {part.score:8.4f} {share}  {one if one == other else f'{one} ~ {other}'}"))
    if len(reason.parts) > _PARTS:
        rest = sum(part.score for part in reason.parts[_PARTS:])
        console.print(Text(f"     {rest:8.4f}  {len(reason.parts) - _PARTS} more", style="dim"))
