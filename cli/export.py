"""``sleuth export``: a finished run's policy as a folder that other programs load as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import people
from sleuth.errors import ArtifactError

if TYPE_CHECKING:
    from cli.config import RunSettings

KIND = "policy"


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
) -> None:
    """Write merged weights, tokenizer, prompt, grammar, environment settings and a model card."""
    import json

    from cli.exported import SETTINGS, protocol_of
    from cli.logs import quiet_libraries
    from cli.model_card import model_card
    from sleuth.artifacts import atomic_folder, check_destination, write_manifest

    settings, policy = finished_policy(run)
    check_destination(out, overwrite, [KIND], [policy, settings.policy.model or policy])
    quiet_libraries()
    from agent.export import save_merged

    chosen = settings.policy.model_copy(update={"model": str(policy), "tiny": None})
    with atomic_folder(out, overwrite=overwrite) as folder:
        codec = save_merged(chosen, str(policy), folder)
        protocol = protocol_of(settings.environment, codec)
        (folder / SETTINGS).write_text(json.dumps(protocol, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(model_card(run, settings, protocol), encoding="utf-8")
        write_manifest(folder, KIND, {"exported_from": str(run), "policy": str(policy.relative_to(run))})
    people().print(f"{out}  from {policy}", markup=False, soft_wrap=True)


def finished_policy(run: Path) -> tuple[RunSettings, Path]:
    """A run's settings and the folder of the policy that it ended with. Raises ArtifactError unless it is finished."""
    from cli.config import load_run_settings
    from sleuth.artifacts import read_manifest
    from sleuth.runs import RunFolder

    read_manifest(run, "run", "sleuth train CONFIG")
    settings = load_run_settings(run / "config.yaml")
    stage = "grpo" if settings.grpo else "warmstart" if settings.warmstart else None
    if stage is None:
        raise ArtifactError(f"{run} trains nothing", "export a run whose config has a grpo or a warmstart section")
    if not RunFolder(run).stage_done(stage):
        raise ArtifactError(
            f"{run} is not finished: its stage {stage} is not done", "finish it with: sleuth train CONFIG --resume"
        )
    return settings, run / "grpo" / "policy" if stage == "grpo" else run / "warmstart"
