"""``sleuth export``: writes a finished run's policy as a folder that other programs can load directly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.console import error_console


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
) -> None:
    """Write merged weights, tokenizer, prompt, grammar, environment settings and a model card."""
    from workflows.exported import export_policy

    policy = export_policy(run, out, overwrite)
    error_console().print(f"{out}  from {policy}", markup=False, soft_wrap=True)
