"""``sleuth world``: creates a made-up world of passages, questions and demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def world(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file with the world's settings; defaults if omitted.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("runs/world"),
    seed: Annotated[int | None, typer.Option(help="Seed of everything random in the world.")] = None,
    paraphrase: Annotated[
        float | None, typer.Option(help="Fraction of questions in words that no passage contains, 0 to 1.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Any setting, as key=value.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")] = False,
) -> None:
    """Create a made-up world: one passage per entity, questions split by entity, demonstrations."""
    from envs.toy_world.config import WorldSettings
    from envs.toy_world.generate import generate_world
    from envs.toy_world.write import KIND, write_world
    from sleuth.artifacts import check_destination
    from sleuth.errors import ConfigError
    from sleuth.settings import apply_override, read_layers, validate

    values = read_layers(config) if config else {}
    if "policy" in values or "out" in values:  # a run's config
        if values.get("world") is None:
            raise ConfigError(f"{config} has no world", "add a section 'world', or give the world's settings alone")
        values = dict(values["world"])
    for key, value in (("seed", seed), ("paraphrase", paraphrase)):
        if value is not None:
            values[key] = value
    for override in overrides or ():
        apply_override(values, override)
    settings = validate(WorldSettings, values, str(config or "sleuth world"))
    check_destination(out, overwrite, [KIND], [config] if config else [])
    made = generate_world(settings)
    write_world(made, out, overwrite=overwrite)
    counts = ", ".join(f"{len(plans)} {split}" for split, plans in made.plans.items())
    typer.echo(f"{out}: {len(made.passages)} passages; questions: {counts}", err=True)
    for plan in made.plans["train"][:2]:
        question = plan.question
        typer.echo(f"  {question.kind}: {question.text}  ->  {question.answers[0]}", err=True)
