"""``sleuth pages``: turns documents and texts into a corpus of page images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from retrieval.pages.write import PagesReport


def pages(
    source: Annotated[
        str,
        typer.Argument(
            help="A PDF, picture, text or HTML file, a folder of them, or passages in any layout that index takes."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new corpus.")],
    width: Annotated[int | None, typer.Option(help="Pixels of a page that is drawn. [512]")] = None,
    height: Annotated[int | None, typer.Option(help="The same; longer texts take more pages. [720]")] = None,
    font: Annotated[str | None, typer.Option(help="A .ttf file or an installed font. [DejaVu Sans Mono]")] = None,
    size: Annotated[int | None, typer.Option(help="Pixels of the font. [14]")] = None,
    cell: Annotated[
        str | None, typer.Option(help="Letters stand in a grid of such cells: 8x16. \\[as the font spaces them]")
    ] = None,
    margin: Annotated[int | None, typer.Option(help="Pixels around the text. [16]")] = None,
    jitter: Annotated[int | None, typer.Option(help="Move each page's text by up to so many pixels. [0]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the jitter. [0]")] = None,
    dpi: Annotated[int | None, typer.Option(help="Resolution of the pages of PDFs. [96]")] = None,
    renderer: Annotated[
        str | None, typer.Option(help="Of HTML: pillow draws its text, chromium prints it as a browser. \\[pillow]")
    ] = None,
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Leave damaged documents out and name them.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing corpus of pages.")] = False,
) -> None:
    """Render SOURCE to page images in the folder --out, a corpus with its text layer and its questions.

    The same command goes on with a corpus that was not finished.
    """
    from retrieval.pages.config import PageSettings
    from retrieval.pages.write import KIND, write_pages
    from retrieval.progress import build_progress
    from sleuth.artifacts import check_destination
    from sleuth.errors import ConfigError
    from sleuth.settings import validate

    if not source.strip():
        raise ConfigError("SOURCE is empty", "name a file or a folder; . is this folder")
    given: dict[str, Any] = {"width": width, "height": height, "font": font, "size": size, "cell": _cell(cell)}
    given |= {"margin": margin, "jitter": jitter, "seed": seed, "dpi": dpi, "renderer": renderer}
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = validate(PageSettings, chosen, "sleuth pages")
    check_destination(out, overwrite, [KIND], [source])
    with build_progress(f"rendering {source}") as on_progress:
        report = write_pages(
            source, out, settings, skip_damaged=skip_damaged, overwrite=overwrite, on_progress=on_progress
        )
    _say(report, out)


def _cell(text: str | None) -> tuple[int, int] | None:
    from sleuth.errors import ConfigError

    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ConfigError(f"--cell is '{text}', not a width and a height", "write it as 8x16")
    return int(width), int(height)


def _say(report: PagesReport, out: Path) -> None:
    counts = {"duplicate": report.duplicates, "damaged document": report.damaged}
    left_out = "".join(f"; {count:,} {what}{'s' * (count != 1)} left out" for what, count in counts.items() if count)
    changed = f"; {report.notes:,} with a note, see notes.jsonl" if report.notes else ""
    typer.echo(f"{report.pages:,} page{'s' * (report.pages != 1)} in {out}{left_out}{changed}", err=True)
    for example in report.examples:
        typer.echo(f"  {example}", err=True)
    typer.echo(f"try it: sleuth index {out} --out INDEX --kind dense --encoder MODEL", err=True)
