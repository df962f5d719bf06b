"""Metric sinks: a jsonl file, the console, TensorBoard. A sink that fails warns once and never stops training.

W&B and trackio are used through transformers' own integrations, not from here.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleuth.artifacts import atomic_write
from sleuth.errors import DataError, MissingExtraError
from sleuth.protocols import MetricSink
from sleuth.trajectories import open_for_append, read_jsonl

if TYPE_CHECKING:
    from rich.console import Console

_log = logging.getLogger("sleuth.sinks")
_HEADER_EVERY = 20


class _Guard:
    """Runs an action that may fail; the first failure is logged as a warning, later ones are silent."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._warned = False

    def __call__(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a sink may fail in any way; training must continue
            if not self._warned:
                _log.warning("metric sink %s failed, metrics may be missing there: %s", self._name, error)
            self._warned = True


class JsonlSink:
    """One line ``{"step": n, name: value, ...}`` per call, flushed.

    ``keep_to``: the step at which a run resumes. Rows of later steps, written before the interruption, are dropped
    so that every step occurs once.
    """

    def __init__(self, path: str | Path, *, keep_to: int | None = None) -> None:
        self._guard = _Guard(str(path))
        self._path = Path(path)
        if keep_to is not None and self._path.exists():
            self._guard(lambda: _drop_after(self._path, keep_to))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._guard(lambda: self._append({"step": step, **values}))

    def close(self) -> None:
        """Nothing to do: no file is held open between calls."""

    def _append(self, row: Mapping[str, Any]) -> None:
        with open_for_append(self._path) as file:
            file.write(json.dumps({name: _finite(value) for name, value in row.items()}, default=float) + "\n")


class ConsoleSink:
    """A compact, aligned table on standard error: one line per step, with the header repeated from time to time.

    ``columns`` are the names to show (name -> label if a mapping). A call with none of them, or a sink without
    columns, prints ``step n  name value  name value`` instead.
    """

    def __init__(self, columns: Sequence[str] | Mapping[str, str] = (), console: Console | None = None) -> None:
        from rich.console import Console

        self._console = console or Console(stderr=True)
        labels = columns if isinstance(columns, Mapping) else {name: name.rpartition("/")[2] for name in columns}
        self._columns = {name: (label, max(len(label), 8)) for name, label in labels.items()}
        self._rows = 0
        self._guard = _Guard("console")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._guard(lambda: self._show(step, values))

    def close(self) -> None:
        """Nothing to do: the console is shared."""

    def _show(self, step: int, values: Mapping[str, float]) -> None:
        if not any(name in values for name in self._columns):
            self._print(f"step {step:<5d} " + "  ".join(f"{name} {_short(v)}" for name, v in values.items()))
            return
        shown = self._fitting()
        if self._rows % _HEADER_EVERY == 0:
            self._print("  ".join(["  step", *(f"{label:>{width}}" for label, width in shown.values())]), style="bold")
        self._rows += 1
        cells = (f"{_short(values[n]) if n in values else '-':>{width}}" for n, (_, width) in shown.items())
        self._print("  ".join([f"{step:>6d}", *cells]))

    def _fitting(self) -> dict[str, tuple[str, int]]:
        """The columns that fit the terminal; a pipe has no width and gets all of them."""
        room = self._console.width - 6 if self._console.is_terminal else math.inf
        fitting = {}
        for name, (label, width) in self._columns.items():
            room -= width + 2
            if room < 0:
                break
            fitting[name] = (label, width)
        return fitting

    def _print(self, line: str, style: str | None = None) -> None:
        self._console.print(line, style=style, soft_wrap=True, highlight=False, markup=False)


class TensorBoardSink:
    """Scalars as TensorBoard events in ``folder``. Raises MissingExtraError if TensorBoard is not installed."""

    def __init__(self, folder: str | Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise MissingExtraError("tensorboard", "tensorboard", "the TensorBoard sink")
        from tensorboard.summary import Writer

        self._guard = _Guard("TensorBoard")
        self._writer = Writer(str(folder))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._guard(lambda: self._write(step, values))

    def close(self) -> None:
        self._guard(self._writer.close)

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


class MultiSink:
    """Passes the same metrics to several sinks; a failing sink, even a third-party one, does not affect the others."""

    def __init__(self, sinks: Sequence[MetricSink]) -> None:
        self._sinks = [(sink, _Guard(type(sink).__name__)) for sink in sinks]

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for sink, guard in self._sinks:
            guard(lambda sink=sink: sink.scalars(step, values))  # type: ignore[misc]

    def close(self) -> None:
        for sink, guard in self._sinks:
            guard(sink.close)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``, without a truncated last line. Raises DataError if there is no such file."""
    rows = []
    try:
        for _, row in read_jsonl(path):
            rows.append(row)
    except DataError:
        if not Path(path).exists() or Path(path).read_bytes().endswith(b"\n"):
            raise
    return rows


def _drop_after(path: Path, step: int) -> None:
    kept = [row for row in read_metrics(path) if row["step"] <= step]
    atomic_write(path, "".join(json.dumps(row) + "\n" for row in kept))


def _finite(value: Any) -> Any:
    """JSON has no NaN, so it is written as a string: it is not lost and does not break other readers."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: float) -> str:
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) < 1e6):
        return str(int(value))
    if 100 <= abs(value) < 1e6:
        return f"{value:.1f}"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 100 else f"{value:.2g}"
