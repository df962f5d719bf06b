"""Progress display on standard error: passages so far, passages per second, time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from retrieval.ingest import OnProgress


@contextlib.contextmanager
def build_progress(title: str) -> Iterator[OnProgress]:
    """Yield a callback that takes the number of passages so far. Silent without a terminal."""
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Task as RichTask
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: RichTask) -> Text:
            return Text(f"{task.completed:,.0f} passages, {task.completed / max(task.elapsed or 0, 1e-3):,.0f}/s")

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), Rate(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda count: bar.update(task, completed=count)
