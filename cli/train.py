"""``sleuth train``, ``sleuth warmstart``, ``sleuth demonstrate``: a run, or its first stages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Out, Overwrite, Resume, Set, resume_command

Config = Annotated[Path, typer.Argument(help="YAML file of the run.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print the resolved config and a cost estimate.")]


def train(
    config: Config,
    set_: Set = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Run every stage in the config: world, policy, demonstrations, warm start, GRPO, evaluation."""
    _run(config, set_, out, resume, overwrite, dry_run, until="grpo")


def warmstart(
    config: Config,
    set_: Set = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Run the stages up to the supervised warm start; `train --resume` continues from there."""
    _run(config, set_, out, resume, overwrite, dry_run, until="warmstart")


def demonstrate(
    config: Config,
    set_: Set = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Write demonstration trajectories for the warm start."""
    _run(config, set_, out, resume, overwrite, dry_run=False, until="demonstrate")


def _run(
    config: Path,
    overrides: list[str] | None,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    until: str,
) -> None:
    from cli.console import error_console
    from sleuth.errors import ConfigError
    from sleuth.settings import read_layers
    from workflows.config import load_run_settings

    settings = load_run_settings(config, overrides or [], out)
    if "cotrain" in read_layers(config):
        raise ConfigError(f"{config} describes co-training, of which this is a part", f"run: sleuth cotrain {config}")
    if dry_run:
        from sleuth.layout import STAGES
        from sleuth.settings import to_yaml
        from workflows.estimate import estimate_lines
        from workflows.model_checks import check_model

        typer.echo(to_yaml(settings))
        check_model(settings, STAGES[: STAGES.index(until) + 1])
        for line in estimate_lines(settings, until):
            error_console().print(line, highlight=False, soft_wrap=True)
        return
    from cli.summary import print_summary
    from workflows.logs import quiet_libraries
    from workflows.stages import run_stages

    quiet_libraries()
    try:
        run = run_stages(settings, until=until, resume=resume, overwrite=overwrite)
    except KeyboardInterrupt:
        command = resume_command({"grpo": "train"}.get(until, until), config, overrides or [], out)
        error_console().print(f"stopped; go on with: {command}", markup=False, soft_wrap=True)
        raise
    print_summary(run.out)
