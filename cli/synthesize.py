"""``sleuth synthesize``: training rows written by a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.console import counting, error_console, print_json
from cli.options import Out, Overwrite, Set


def synthesize(
    config: Annotated[Path, typer.Argument(help="YAML file: writer, recipe, what to write about, filters.")],
    set_: Set = None,
    out: Out = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in this folder; limit and keep may be larger.")
    ] = False,
    overwrite: Overwrite = False,
    json: Annotated[bool, typer.Option("--json", help="Print the record of the run as one JSON object.")] = False,
) -> None:
    """Write training rows for retrievers with a language model, filter them, and keep the rest with reasons."""
    from workflows.synthesis.config import load_synthesis

    settings = load_synthesis(config, set_ or [], out)
    from retrieval.progress import build_progress
    from workflows.synthesis.job import run_synthesis
    from workflows.synthesis.layout import SynthesisLayout
    from workflows.synthesis.run import Progressing

    record = run_synthesis(settings, resume, overwrite, Progressing(counting, build_progress))
    _show(record, SynthesisLayout(settings.out))
    if json:
        print_json(record)


def _show(record: dict[str, Any], layout: Any) -> None:
    console = error_console()

    def tell(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    cost, units = record["cost"], record["units"]
    tell(f"{record['recipe']} by {record['writer']}: {units['written_about']:,} units, {record['written']:,} rows")
    for name, one in record["filters"].items():
        share = f" ({one['out'] / one['in']:.0%})" if one["in"] else ""
        tell(f"  {name}: {one['out']:,} of {one['in']:,} pass{share}")
    for one in record["rejects"]:
        tell(f"  {one['count']:,} not kept: {one['by']}, {one['reason']}")
    if record["other_positive"]:
        tell(f"  {record['other_positive']:,} kept rows have another positive than the passage they were written about")
    tell(
        f"{cost['asked']:,} requests ({cost['failed']:,} failed, {cost['retried']:,} answers busy or broken), "
        f"{cost['prompt_tokens']:,} tokens read, {cost['tokens']:,} written, {record['seconds']:,} s"
    )
    if cost["weighed"]:
        tell(f"{cost['weighed']:,} texts weighed, {cost['weighed_tokens']:,} tokens")
    tell(f"{record['kept']:,} rows in {layout.rows}, the others in {layout.rejects}; to read: {layout.page}")
