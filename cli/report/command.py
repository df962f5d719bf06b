"""``sleuth report``: one HTML page about one or several runs; ``--serve`` follows a run in progress."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.console import error_console


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out: Annotated[Path | None, typer.Option(help="File to write; by default report.html in the first run.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Maximum number of trajectories, spread over all.")] = 2000,
    serve: Annotated[bool, typer.Option("--serve", help="Serve the page and follow runs in progress.")] = False,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve on; 0 for a free one.")] = 8900,
) -> None:
    """Report curves, time per stage of a step, configuration differences, and a trajectory browser."""
    from cli.report.page import LIMIT, make_page, overhead
    from workflows.report.collect import read_run, run_names

    names = run_names(runs)
    for path, name in zip(runs, names, strict=True):
        read_run(path, name)
    if serve:
        from cli.report.serve import serve_report

        serve_report(runs, limit, host, port)
        return
    from sleuth.artifacts import atomic_write
    from workflows.report.compact import pack_runs

    page = make_page(pack_runs(runs, limit, (LIMIT - overhead()) * 3 // 4), f"Sleuth: {', '.join(names)}")
    destination = out or runs[0] / "report.html"
    atomic_write(destination, page)
    error_console().print(f"{destination}  {len(page.encode()) / 1e6:.2f} MB", markup=False, soft_wrap=True)
