"""Progress display on standard error: passages so far, passages per second, time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrieval.ingest import OnProgress
from sleuth.progress import plain_progress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@dataclass(frozen=True, slots=True)
class _Bar:
    """Counts on a terminal."""

    bar: Progress
    task: TaskID

    def __call__(self, count: int) -> None:
        self.bar.update(self.task, completed=count)

    def expect(self, total: int) -> None:
        self.bar.update(self.task, total=total)


@contextlib.contextmanager
def build_progress(title: str) -> Iterator[OnProgress]:
    """Yield a callback that takes the number of passages so far; `sleuth.progress.expect` tells it how many there are.

    Without a terminal it prints a plain line now and then.
    """
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Task as RichTask
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: RichTask) -> Text:
            of = f" of {task.total:,.0f}" if task.total else ""
            rate = task.completed / max(task.elapsed or 0, 1e-3)
            return Text(f"{task.completed:,.0f}{of} passages, {rate:,.0f}/s")

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        with plain_progress(title, lambda line: console.print(line, markup=False, soft_wrap=True)) as tally:
            yield tally
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), Rate(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        yield _Bar(bar, bar.add_task(title, total=None))
