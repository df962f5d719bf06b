"""``sleuth download``: questions, passages and indexes from the hub; sizes are said and confirmed first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import error_console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hub.download import Planned
    from hub.resources import Product


def download(
    names: Annotated[list[str] | None, typer.Argument(help="What to download; without any, what there is.")] = None,
    config: Annotated[
        Path | None, typer.Option("--for", metavar="CONFIG", help="What this config names and is not here.")
    ] = None,
    suite: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="The question files of this suite.")] = None,
    out: Annotated[Path, typer.Option(help="Folder that it goes under; with --for, where the config has it.")] = Path(
        "data"
    ),
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="With --for.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Download what others publish on the Hugging Face hub, as files that configs and suites read.

    The same command goes on where an interrupted one stopped. Every file is checked against the hub's hash.
    """
    from hub.resources import RESOURCES, products_named

    wanted: list[tuple[Product, Path]] = [(product, out) for name in names or [] for product in products_named(name)]
    if suite is not None:
        from workflows.needs import products_of_suite

        wanted += [(product, out) for product in products_of_suite(suite)]
    if config is not None:
        from workflows.needs import products_for

        wanted += products_for(config, overrides or [])
    console = error_console()
    if not wanted:
        if config is None and suite is None:
            for name, resource in RESOURCES.items():
                made = ", ".join(product.path for product in resource.products)
                console.print(f"{name:<17}{resource.about}: {made}", markup=False, soft_wrap=True)
        else:
            console.print("nothing to download: the rest is here, or not on the hub")
        return
    _download(list(dict.fromkeys(wanted)), yes)


def _download(wanted: Sequence[tuple[Product, Path]], yes: bool) -> None:
    from hub.download import fetch, plan, size_of

    console = error_console()
    for product, root in wanted:
        if (root / product.path).exists():
            console.print(f"here already: {root / product.path}", markup=False, soft_wrap=True)
    planned = plan(wanted)
    for one in planned:
        where = f"{one.product.repository} at {one.revision[:12]}"
        console.print(f"{size_of(one.size):>9}  {one.destination}  from {where}", markup=False, soft_wrap=True)
    if not planned:
        return
    _check_room(planned)
    total = sum(one.size for one in planned)
    _confirm(f"download {size_of(total)}", yes)
    for one in planned:
        fetch(one, lambda line: console.print(line, markup=False, soft_wrap=True), bars=console.is_terminal)
        console.print(f"made and checked: {one.destination}", markup=False, soft_wrap=True)


def _check_room(planned: Sequence[Planned]) -> None:
    """Raise DataError if the disk cannot hold what is to be made."""
    import shutil

    from hub.download import size_of
    from sleuth.errors import DataError

    needed: dict[int, int] = {}
    for one in planned:
        folder = next(path for path in (one.destination, *one.destination.resolve().parents) if path.is_dir())
        disk = folder.stat().st_dev
        needed[disk] = needed.get(disk, 0) + one.room
        free = shutil.disk_usage(folder).free
        if needed[disk] > free:
            raise DataError(
                f"{size_of(needed[disk])} are needed for {one.destination}, and {size_of(free)} are free in {folder}",
                "make room, or choose another folder",
            )


def _confirm(what: str, yes: bool) -> None:
    import sys

    from sleuth.errors import ConfigError

    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"nobody can be asked whether to {what}", "add --yes")
    if not typer.confirm(f"{what}?", err=True):
        raise typer.Exit(1)
