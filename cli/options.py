"""Options that the commands of a run have in common, and the command that goes on with one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

Set = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key.sub=value. Repeatable.")]
Out = Annotated[Path | None, typer.Option(help="Run folder, instead of the config's.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in this folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in this folder.")]


def resume_command(command: str, config: Path, overrides: Sequence[str], out: Path | None) -> str:
    """What to type to resume a run, including ``--out``, without which it would start another."""
    words = ["sleuth", command, str(config), *(word for one in overrides for word in ("--set", one))]
    return shlex.join([*words, *(["--out", str(out)] if out else []), "--resume"])
