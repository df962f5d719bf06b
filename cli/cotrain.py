"""``sleuth cotrain``: agent and retriever teach each other, round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.console import counting, error_console
from cli.options import Out, Overwrite, Resume, Set, resume_command

Config = Annotated[Path, typer.Argument(help="YAML file of the run, with a section cotrain.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print the resolved config.")]


def cotrain(
    config: Config,
    set_: Set = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Train agent and retriever in rounds: rollouts, rows without a judge, retriever, index, GRPO, evaluation."""
    from workflows.cotrain.config import load_cotrain_run

    settings = load_cotrain_run(config, set_ or [], out)
    if dry_run:
        from sleuth.settings import to_yaml

        typer.echo(to_yaml(settings))
        return
    from workflows.cotrain.loop import run_cotraining
    from workflows.logs import quiet_libraries

    quiet_libraries()
    try:
        rows = run_cotraining(settings, resume=resume, overwrite=overwrite, counting=counting)
    except KeyboardInterrupt:
        command = resume_command("cotrain", config, set_ or [], out)
        error_console().print(f"stopped; go on with: {command}", markup=False, soft_wrap=True)
        raise
    for line in lines_of(rows):
        error_console().print(line, markup=False, soft_wrap=True)
    error_console().print(f"in {settings.out}", markup=False, soft_wrap=True)


def lines_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each round reached, a line each, with the paired differences to the round before."""
    return [f"round {row['round']}: " + "; ".join(_parts(row)) for row in rows]


def _parts(row: Mapping[str, Any]) -> list[str]:
    after, parts = row["after"], []
    agent = after["agent"]
    change = agent.get("to_before") or {}
    parts.append(f"EM {agent['means']['em']:.3f}{_interval(change)}")
    if "gold_recall" in agent["means"]:
        parts.append(f"gold recall {agent['means']['gold_recall']:.3f}{_interval(change.get('gold_recall') or {})}")
    if "retriever" in after:
        found = after["retriever"]
        parts.append(f"recall@{found['k']} {found['recall']:.3f}{_interval(found.get('to_before') or {})}")
    if "rows" in row:
        precision = row["rows"].get("precision")
        parts.append(f"{row['rows']['rows']} rows" + (f", precision {precision:.2f}" if precision is not None else ""))
    if "guard" in row and not row["guard"]["swapped"]:
        parts.append("the new retriever was worse and not swapped in")
    return parts


def _interval(change: Mapping[str, Any]) -> str:
    if "difference" not in change:
        return ""
    return f" ({change['difference']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}])"
