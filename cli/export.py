"""``sleuth export``: writes a finished run's policy as a folder that other programs can load directly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.console import error_console

KIND = "policy"


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
) -> None:
    """Write merged weights, tokenizer, prompt, grammar, environment settings and a model card."""
    import json

    from sleuth.artifacts import atomic_folder, check_destination, write_manifest
    from workflows.exported import SETTINGS, finished_policy, protocol_of
    from workflows.logs import quiet_libraries
    from workflows.model_card import model_card

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
    error_console().print(f"{out}  from {policy}", markup=False, soft_wrap=True)
