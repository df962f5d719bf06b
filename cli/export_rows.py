"""``sleuth export-rows``: writes the agent's queries as training rows for its retriever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.console import error_console


def export_rows(
    sources: Annotated[list[Path], typer.Argument(help="Run folders, or files or folders of trajectories.")],
    out: Annotated[Path, typer.Option(help="The jsonl file to write, in Tevatron's layout.")],
    rewarded_from: Annotated[float, typer.Option(help="The lowest reward that counts as rewarded.")] = 1.0,
    every: Annotated[bool, typer.Option("--every", help="Also write rows without a positive passage.")] = False,
) -> None:
    """Write a row for every query that the agent asked, with its positive and negative passages.

    A hit is positive if it is a gold passage of the question, by id or, where the question lists none, by title, or if
    it has the answer in a rewarded trajectory.
    """
    from agent.retriever_rows import asked_queries
    from sleuth.artifacts import atomic_write
    from sleuth.errors import DataError
    from sleuth.trajectories import read_trajectories

    files = [file for source in sources for file in files_of(source)]
    asked = asked_queries((row for file in files for row in read_trajectories(file)), rewarded_from)
    rows = [query.to_row(f"q{number}") for number, query in enumerate(asked)]
    kept = [row for row in rows if every or row["positive_passages"]]
    if not kept:
        why = "none of them found a positive passage" if rows else "no scored trajectory searched"
        raise DataError(f"there are no rows to write: of {len(rows)} queries, {why}", "--every writes them anyway")
    atomic_write(out, "".join(json.dumps(row) + "\n" for row in kept))
    bare = sum(not row["negative_passages"] for row in kept)
    error_console().print(
        f"{out}  {len(kept)} rows from {len(rows)} queries; {len(rows) - len(kept)} had no positive passage; "
        f"{bare} of the rows without a negative one",
        markup=False,
        soft_wrap=True,
    )


def files_of(source: Path) -> list[Path]:
    """The trajectory files in ``source``; of a run, only those of training, which are on training questions."""
    from sleuth.errors import DataError
    from sleuth.layout import RunLayout
    from sleuth.trajectories import trajectory_files

    if source.is_file():
        return [source]
    if not source.exists():
        raise DataError(f"there is nothing at {source}", "give a run folder, or a trajectory file")
    found = trajectory_files(RunLayout(source).grpo.trajectories) or trajectory_files(source)
    if not found:
        raise DataError(f"{source} has no trajectories", "give a trained run, or a trajectory file")
    return found
