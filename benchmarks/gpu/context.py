"""What a stage is given: the config as carried, adapted to device and size, and the parts that are done already."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sleuth.errors import TrainingError, first_line
from sleuth.layout import read_record, write_record
from workflows.config import RunSettings, load_run_settings

Figures = dict[str, Any]


@dataclass(slots=True)
class Parts:
    """The parts of a stage, each kept as soon as it is done. One that fails does not keep the others from running."""

    path: Path
    failed: dict[str, str] = field(default_factory=dict)

    def do(self, name: str, work: Callable[[], Figures]) -> Figures | None:
        """What ``work`` finds, or found in an earlier process; None if it fails."""
        known = read_record(self.path) or {}
        if name not in known:
            started = time.perf_counter()
            try:
                figures = work()
            except Exception as error:  # noqa: BLE001 - time on the machine is dear: the other parts are measured
                traceback.print_exc()
                self.failed[name] = first_line(error)
                print(f"{name}: failed: {first_line(error)}", flush=True)
                return None
            known[name] = {**figures, "seconds": round(time.perf_counter() - started, 2)}
            write_record(self.path, known)
            print(f"{name}: {_line(known[name])}", flush=True)
        return dict(known[name])

    def all(self) -> Figures:
        return read_record(self.path) or {}

    def check(self) -> None:
        """Raises TrainingError if a part failed; the next process tries it again."""
        if self.failed:
            raise TrainingError("; ".join(f"{name}: {why}" for name, why in self.failed.items()))


@dataclass(frozen=True, slots=True)
class Context:
    """``seconds``: what the stage has, in one process or several."""

    work: Path
    config: Path
    device: str
    small: bool
    seconds: float
    overrides: tuple[str, ...]
    parts: Parts

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def settings(self, *more: str) -> RunSettings:
        """The run's settings on this device; ``more`` are overrides above the user's own."""
        given = [f"policy.device={self.device}", *self.overrides]
        plain = load_run_settings(self.config, given)
        return load_run_settings(self.config, [*given, *(_few(plain) if self.small else ()), *more])


def _few(plain: RunSettings) -> list[str]:
    """Overrides that make a run so small that all of it can be tried on a CPU."""
    few = {"policy.max_rows": 8, "evaluation.limit": 2, "evaluation.batch_size": 4}
    if plain.demonstrations:
        few["demonstrations.limit"] = 8
    if plain.warmstart:
        few |= {"warmstart.steps": 2, "warmstart.batch_size": 4, "warmstart.micro_batch": 2, "warmstart.save_steps": 1}
    if plain.grpo:
        few |= {"grpo.questions": 2, "grpo.group_size": 2, "grpo.micro_batch": 2, "grpo.steps": 2}
        few |= {"grpo.minibatches": 1, "grpo.iterations": 1, "grpo.eval_limit": 2, "grpo.save_steps": 1}
    return [f"{key}={value}" for key, value in few.items()]


def _line(figures: Figures) -> str:
    return ", ".join(f"{name} {json.dumps(_short(value))}" for name, value in figures.items())


def _short(value: Any) -> Any:
    return float(f"{value:.3g}") if isinstance(value, float) else value
