"""``sleuth inspect``: shows a resolved config, a trajectory with its mask, or the state of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.console import output_console

app = typer.Typer(help="Show a config, a trajectory, or this machine.", no_args_is_help=True)


@app.command()
def config(
    file: Annotated[Path, typer.Argument(help="Config file of a run.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting.")] = None,
) -> None:
    """Print the resolved config: every layer, override and default, as YAML that can be read back."""
    from sleuth.settings import to_yaml
    from workflows.config import load_run_settings

    typer.echo(to_yaml(load_run_settings(file, overrides or [])), nl=False)


@app.command()
def trajectory(
    file: Annotated[Path, typer.Argument(help="A run, a .jsonl or .parquet file, or a folder of them.")],
    index: Annotated[int, typer.Option("--index", "-i", min=0, help="Which row, from 0.")] = 0,
    tokens: Annotated[bool, typer.Option("--tokens", help="Show the mask token by token.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Like --tokens, with token texts from this model's tokenizer.")
    ] = None,
) -> None:
    """Show one trajectory turn by turn, or token by token with the loss mask."""
    from itertools import islice

    from cli.export_rows import files_of
    from cli.show import show_tokens, show_turns
    from sleuth.errors import DataError
    from sleuth.trajectories import read_trajectories

    files = files_of(file)
    row = next(islice((row for part in files for row in read_trajectories(part)), index, None), None)
    if row is None:
        count = sum(1 for part in files for _ in read_trajectories(part))
        raise DataError(f"{file} has {count} trajectories, none at --index {index}", "the first is 0")
    console = output_console()
    show_turns(row, console)
    if tokens or model:
        show_tokens(row.trajectory, console, _token_texts(model) if model else None, row.origin)


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Option("--for", metavar="CONFIG", help="What the run of this config needs, instead.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="With --for.")] = None,
) -> None:
    """Check this machine for what Sleuth needs, or for what a config does. Exit status 1 if something is missing."""
    from cli.doctor import checks, checks_for, print_checks

    found = list(checks() if config is None else checks_for(config, overrides or []))
    print_checks(found, output_console())
    if any(check.state == "missing" for check in found):
        raise typer.Exit(1)


def _token_texts(model: str) -> dict[int, str]:
    """Text of every token id; special tokens by name."""
    from agent.policies.loading import load_codec

    tokenizer = load_codec(model).tokenizer
    return {i: tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in range(len(tokenizer))}
