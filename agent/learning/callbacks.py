"""Callbacks around TRL's steps: timing, dev evaluation, checkpoints, monitors."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from safetensors.torch import save_model
from transformers import TrainerCallback

from agent.config import MonitorSettings
from agent.learning.checkpoints import REFERENCE
from agent.learning.trainer import finite_gradients
from sleuth.checkpoints import checkpoint_at
from sleuth.errors import TrainingError
from sleuth.protocols import MetricSink

T = TypeVar("T")
log = logging.getLogger("sleuth.train")


_ROLLOUT = ("generate", "retrieve", "score")
"""Stages of playing a rollout, as named in the log."""


class StageTimer(TrainerCallback):  # type: ignore[misc]
    """Adds ``time/reference`` and ``time/update`` to a log line, so that a step's stages sum to its time."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._started = 0.0

    def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        whole = time.perf_counter() - self._started
        metrics = self._trainer._metrics["train"]
        reference = self._trainer.take_reference_seconds()
        for stage in _ROLLOUT:
            if not metrics[f"time/{stage}"]:  # a further update on the same rollout
                metrics[f"time/{stage}"].append(0.0)
        rollout = sum(metrics[f"time/{stage}"][-1] for stage in _ROLLOUT)
        rollout += sum(metrics.get("time/credit") or [0.0])  # only where turns are judged
        metrics["time/reference"].append(reference)
        metrics["time/update"].append(max(whole - reference - rollout, 0.0))
        metrics["time/step"].append(whole)


_LEAST_SCALE = 1.0
_OVERFLOWS = 3


class GradientGuard(TrainerCallback):  # type: ignore[misc]
    """Stops before an update whose gradient is not finite, leaving the weights unchanged.

    In float16 that is routine: the grad scaler leaves such an update out and halves its scale, which begins at 65,536.
    There training stops only after three in a row at a scale of 1 or less, where lowering it no longer helps.
    """

    def __init__(self, section: str) -> None:
        self._section = section
        self._overflows = 0

    def on_pre_optimizer_step(
        self, _args: Any, state: Any, _control: Any, model: Any = None, optimizer: Any = None, **_kwargs: Any
    ) -> None:
        if finite_gradients(model):
            self._overflows = 0
            return
        scaler = getattr(optimizer, "scaler", None)
        if scaler is not None and scaler.is_enabled():
            scale = float(scaler.get_scale())
            self._overflows += scale <= _LEAST_SCALE
            if self._overflows < _OVERFLOWS:
                log.warning(
                    "step %d: the gradient overflows float16 at a loss scale of %g: this update is left out",
                    state.global_step,
                    scale,
                )
                return
        raise TrainingError(
            f"a gradient is NaN or infinite at step {state.global_step}: stopped before the update",
            f"the last checkpoint is intact; lower {self._section}.learning_rate in a new run",
        )


class ReferenceKeeper(TrainerCallback):  # type: ignore[misc]
    """Adds a reference model that follows the policy to each checkpoint; transformers saves only the policy."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_save(self, args: Any, state: Any, _control: Any, **_kwargs: Any) -> None:
        if args.sync_ref_model and state.is_world_process_zero:
            reference = self._trainer.accelerator.unwrap_model(self._trainer.ref_model)
            # Tied tensors once: the model ties them again.
            save_model(reference, str(checkpoint_at(args.output_dir, state.global_step) / REFERENCE))


class DevEvaluation(TrainerCallback):  # type: ignore[misc]
    """Greedy evaluation on dev questions at step 0 and every ``every`` steps; keeps the best, may stop early.

    ``evaluate`` returns metrics: ``em`` over the questions that could be scored, if any, and the numbers ``scored`` and
    ``unscored`` if any could not. Above the share ``max_unscored`` the metrics are logged but not used. Among ties the
    latest is kept, and patience counts from the first. All state is the trainer's, so it survives a resume. With
    several processes, all call ``evaluate``, which shares the questions out, and all use the first one's metrics, so
    that they stop and save together.
    """

    def __init__(
        self,
        trainer: Any,
        evaluate: Callable[[], Mapping[str, float]],
        sink: MetricSink,
        *,
        every: int,
        patience: int,
        max_unscored: float = 0.5,
    ) -> None:
        self._trainer = trainer
        self._evaluate = evaluate
        self._sink = sink
        self._every = every
        self._patience = patience
        self._max_unscored = max_unscored

    def on_train_begin(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        """Evaluate the starting policy and save it as a checkpoint: it may remain the best."""
        if state.global_step == 0:
            self._run(args, state, control)
            self._trainer._save_checkpoint(self._trainer.model, trial=None)
            self._trainer.callback_handler.on_save(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        if state.global_step % self._every == 0 or state.global_step == state.max_steps:
            self._run(args, state, control)

    def _run(self, args: Any, state: Any, control: Any) -> None:
        figures = from_first_process(self._evaluate())
        if state.is_world_process_zero:
            self._sink.scalars(state.global_step, {f"dev/{name}": value for name, value in figures.items()})
        control.should_save = True
        if not self._usable(figures):
            return
        if state.best_metric is None or figures["em"] >= state.best_metric:
            state.best_metric = figures["em"]
            state.best_global_step = state.global_step
            state.best_model_checkpoint = str(checkpoint_at(args.output_dir, state.global_step))
        state.log_history.append({"step": state.global_step, "dev/em": figures["em"]})
        reached = [row["step"] for row in state.log_history if row.get("dev/em") == state.best_metric]
        waited = (state.global_step - min([state.best_global_step, *reached])) // self._every
        if self._patience and waited >= self._patience:
            log.warning("no better dev EM for %d evaluations: stopping early", waited)
            control.should_training_stop = True

    def _usable(self, figures: Mapping[str, float]) -> bool:
        """Whether enough questions were scored to choose a checkpoint by."""
        unscored = figures.get("unscored", 0.0)
        asked = unscored + figures.get("scored", 0.0)
        enough = "em" in figures and unscored <= self._max_unscored * asked
        if unscored:
            what = "EM is that of the others" if enough else "these metrics are not used to choose a checkpoint"
            log.warning("%d of %d dev questions could not be scored: %s", unscored, asked, what)
        return enough


_GAPS = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}
"""Tolerated log-prob difference between sampler and trainer at a token, in nats, by dtype."""


class Monitors(TrainerCallback):  # type: ignore[misc]
    """Warns when metrics indicate a collapsing run; may stop it after ``patience`` log lines in a row."""

    def __init__(self, settings: MonitorSettings, dtype: str) -> None:
        gap = _GAPS[dtype] if settings.max_logprob_gap is None else settings.max_logprob_gap
        self._settings = settings.model_copy(update={"max_logprob_gap": gap})
        self._bad_lines = 0
        self._searched = False

    def on_log(self, _args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_kw: Any) -> None:
        if not logs or "loss" not in logs:
            return
        lines = [*state.log_history, logs]  # the history survives a resume
        self._searched = self._searched or any(
            line.get("rollout/searched", 0.0) >= self._settings.min_searched for line in lines
        )
        faults = collapse_signs(logs, self._settings, searches=self._searched)
        if faults:
            self._bad_lines += 1
        elif "reward" in logs:  # further updates on a rollout log nothing about it
            self._bad_lines = 0
        for fault in faults:
            log.warning("step %d: %s", state.global_step, fault)
        # Each process measures its own rows: the first one decides for all.
        if from_first_process(self._settings.stop_on_collapse and self._bad_lines >= self._settings.patience):
            log.warning("stopping: %d log lines in a row indicated a collapse", self._bad_lines)
            control.should_training_stop = True


def from_first_process(value: T) -> T:
    """The first training process's ``value``; all processes must call this."""
    from accelerate.utils import broadcast_object_list

    shared = [value]
    broadcast_object_list(shared)
    return shared[0]


def collapse_signs(logs: Mapping[str, Any], limits: MonitorSettings, *, searches: bool = True) -> list[str]:
    """What is wrong in a log line, in words; empty if nothing. ``searches``: this policy has searched before."""
    checks: list[tuple[str, float | None, bool]] = [
        ("entropy", limits.min_entropy, False),
        ("kl", limits.max_kl, True),
        ("ratio/max", limits.max_ratio, True),
        ("rollout/answered", limits.min_answered, False),
        ("rollout/searched", limits.min_searched if searches else None, False),
        ("rollout/invalid_turns", limits.max_invalid, True),
        ("groups/flat", limits.max_flat, True),
        ("check/logprob_gap", limits.max_logprob_gap, True),
    ]
    found = []
    for name, limit, upper in checks:
        value = logs.get(name)
        if value is None or limit is None or math.isnan(value):
            continue
        if value > limit if upper else value < limit:
            found.append(f"{name} is {value:.4g}, {'above' if upper else 'below'} {limit:g}")
    return found
