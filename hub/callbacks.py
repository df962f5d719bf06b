"""Callbacks for every trainer built on transformers': log to Sleuth's sinks, mark complete checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from sleuth.checkpoints import checkpoint_at, mark_complete
from sleuth.protocols import MetricSink


class LogToSink(TrainerCallback):  # type: ignore[misc]
    """Passes the numbers in a trainer's logs to Sleuth's sinks."""

    def __init__(self, sink: MetricSink) -> None:
        self._sink = sink

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Mapping[str, Any] | None = None, **_kw: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        numbers = {name: float(v) for name, v in logs.items() if isinstance(v, int | float) and name != "epoch"}
        self._sink.scalars(state.global_step, numbers)


class CompletionMarker(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint once it is complete; a run never resumes from one without the mark."""

    def on_save(self, args: Any, state: Any, _control: Any, **_kwargs: Any) -> None:
        if state.is_world_process_zero:
            mark_complete(checkpoint_at(args.output_dir, state.global_step))
