"""Callbacks for every trainer built on transformers': log to Sleuth's sinks, mark complete checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from sleuth.checkpoints import checkpoint_at, mark_complete
from sleuth.protocols import MetricSink


class LogToSink(TrainerCallback):  # type: ignore[misc]
    """Passes the numbers in a trainer's logs to Sleuth's sinks.

    ``time/row`` is the seconds since the row before, or since this process began to train: those of all rows add up to
    the time of a training that was resumed.
    """

    def __init__(self, sink: MetricSink) -> None:
        self._sink = sink
        self._told = time.monotonic()

    def on_train_begin(self, _args: Any, _state: Any, _control: Any, **_kwargs: Any) -> None:
        self._told = time.monotonic()

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Mapping[str, Any] | None = None, **_kw: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        numbers = {name: float(v) for name, v in logs.items() if isinstance(v, int | float) and name != "epoch"}
        last, self._told = self._told, time.monotonic()
        self._sink.scalars(state.global_step, numbers | {"time/row": self._told - last})


class CompletionMarker(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint once it is complete; a run never resumes from one without the mark."""

    def on_save(self, args: Any, state: Any, _control: Any, **_kwargs: Any) -> None:
        if state.is_world_process_zero:
            mark_complete(checkpoint_at(args.output_dir, state.global_step))
