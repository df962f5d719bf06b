"""The training loop: batch, InfoNCE by gradient caching, one optimizer step; checkpoints, dev figures, exact resume.

A step depends only on the weights, the optimizer state, the random state and the step number, all of which are in
a checkpoint: a resumed run ends with the same bits as an uninterrupted one.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.util import get_rank
from torch import Tensor, nn
from transformers import get_scheduler

from hub.adapters import check_targets, lora_config, merge_adapter
from hub.config import LoraSettings
from hub.randomness import seeded
from retrieval.encoders.config import Role
from retrieval.encoders.encoder import Encoder
from retrieval.training.config import TrainingSettings
from retrieval.training.objective import Objective
from retrieval.training.ranks import (
    mean_over_ranks,
    of_all_ranks,
    spread_from_first,
    sum_gradients,
    wait_for_all,
    work_on,
)
from sleuth.checkpoints import checkpoint_at, checkpoint_step, drop_incomplete, mark_complete, newest_complete
from sleuth.errors import TrainingError
from sleuth.protocols import MetricSink
from sleuth.seeding import derive_seed

log = logging.getLogger("sleuth.train_retriever")

_WEIGHTS, _OPTIMIZER, _STATE = "weights.pt", "optimizer.pt", "state.json"

Evaluate = Callable[[Encoder, int], Mapping[str, float]]
"""Measures of an encoder at a step."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Evaluation during training: how often, by which metric, and the patience of early stopping."""

    evaluate: Evaluate
    metric: str
    every: int
    patience: int = 0


@dataclass(slots=True)
class Progress:
    """The contents of a checkpoint other than tensors."""

    step: int = 0
    best_step: int = 0
    best: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The step that was kept, the metric value it was chosen by (None: no evaluation, the last step), and timing."""

    best_step: int
    best: float | None
    last_step: int
    seconds: float


def train(
    encoder: Encoder,
    objective: Objective,
    settings: TrainingSettings,
    out: Path,
    *,
    seed: int,
    sink: MetricSink,
    watch: Watch | None = None,
    resume: bool = False,
) -> Outcome:
    """Train ``encoder`` in place, ending with the weights of the best step. Checkpoints go to ``out``.

    Raises TrainingError before a step whose gradient is not finite.
    """
    started = time.monotonic()
    loop = _Loop(encoder, objective, settings, out, sink, watch, seed)
    loop.begin(resume)
    while loop.progress.step < loop.steps and not loop.tired():
        loop.step()
    loop.end()
    last = loop.progress
    best_step = last.best_step if watch else last.step
    return Outcome(best_step, last.best, last.step, time.monotonic() - started)


class _Loop:
    """One training run in progress."""

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        settings: TrainingSettings,
        out: Path,
        sink: MetricSink,
        watch: Watch | None,
        seed: int,
    ) -> None:
        self.encoder, self.objective, self.settings = encoder, objective, settings
        self.out, self.sink, self.watch, self.seed = out, sink, watch, seed
        self.steps = settings.steps or objective.steps(settings.epochs)
        self.weights = trainable(encoder)
        if not self.weights:
            raise TrainingError(
                "the encoder has no weights to train: a loaded adapter is frozen",
                "add a section training.lora to continue training it",
            )
        self.optimizer = torch.optim.AdamW(
            _decayed(self.weights, settings.weight_decay), lr=settings.learning_rate, betas=settings.betas
        )
        self.schedule = get_scheduler(settings.schedule, self.optimizer, settings.warmup_steps, self.steps)
        self.progress = Progress()

    def begin(self, resume: bool) -> None:
        work_on(self.encoder.device)
        if get_rank() == 0:
            drop_incomplete(self.out)
            if not resume and self.out.exists():
                shutil.rmtree(self.out)
        wait_for_all()
        model = self.encoder.model
        spread_from_first([*model.parameters(), *model.buffers()])  # whatever each rank drew or loaded
        found = newest_complete(self.out) if resume else None
        if found is not None:
            self._load(found)
            log.info("resuming from step %d", self.progress.step)
            return
        torch.manual_seed(self.seed + get_rank())
        if self.watch:
            self._evaluate()
        self._save()

    def step(self) -> None:
        started = time.monotonic()
        self.encoder.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        figures = self.objective.backward(self.encoder, self.progress.step)
        parameters = list(self.weights.values())
        sum_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        if not torch.isfinite(norm):
            raise TrainingError(
                f"the gradient is not finite at step {self.progress.step}: stopped before the update",
                "the last checkpoint is intact; lower training.learning_rate, then start again",
            )
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        self.progress.step += 1
        spent = time.monotonic() - started
        self._report(figures, {"grad_norm": float(norm), "learning_rate": rate, "time/step": spent})
        self._after_step()

    def tired(self) -> bool:
        """Whether the metric has not improved for ``patience`` evaluations."""
        if not self.watch or not self.watch.patience:
            return False
        waited = (self.progress.step - self.progress.best_step) // self.watch.every
        if waited >= self.watch.patience:
            log.warning("no better %s for %d evaluations: stopping early", self.watch.metric, waited)
        return waited >= self.watch.patience

    def end(self) -> None:
        """Leave the encoder with the best weights."""
        if self.watch and self.progress.best_step != self.progress.step:
            self._load_weights(checkpoint_at(self.out, self.progress.best_step))
        self.encoder.model.eval()

    def _report(self, figures: Mapping[str, float], more: Mapping[str, float]) -> None:
        step, last = self.progress.step, self.progress.step == self.steps
        if step % self.settings.log_steps and not last:
            return
        values = mean_over_ranks(figures, self.encoder.device) | dict(more)
        if get_rank() == 0:
            self.sink.scalars(step, values)

    def _after_step(self) -> None:
        step, last = self.progress.step, self.progress.step == self.steps
        evaluated = self.watch is not None and (step % self.watch.every == 0 or last)
        if evaluated:
            self._evaluate()
        if evaluated or last or step % self.settings.save_steps == 0:
            self._save()

    def _evaluate(self) -> None:
        assert self.watch is not None
        started = time.monotonic()
        own = self.watch.evaluate(self.encoder, self.progress.step)
        figures = mean_over_ranks(own, self.encoder.device)  # so that all ranks keep, and stop at, the same step
        progress = self.progress
        if progress.best is None or figures[self.watch.metric] > progress.best:
            progress.best, progress.best_step = figures[self.watch.metric], progress.step
        progress.history.append({"step": progress.step, **figures})
        if get_rank() == 0:
            named = {f"dev/{name}": value for name, value in figures.items()}
            self.sink.scalars(progress.step, named | {"time/evaluate": time.monotonic() - started})

    def _save(self) -> None:
        random = of_all_ranks(_random_state(self.encoder.device))
        if get_rank() != 0:
            return
        folder = checkpoint_at(self.out, self.progress.step)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({name: weight.detach() for name, weight in self.weights.items()}, folder / _WEIGHTS)
        kept = {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(), "random": random}
        torch.save(kept, folder / _OPTIMIZER)
        (folder / _STATE).write_text(json.dumps(asdict(self.progress)), encoding="utf-8")
        mark_complete(folder)
        self._drop_old()

    def _drop_old(self) -> None:
        """Keep the newest few and the best."""
        steps = sorted((checkpoint_step(p) for p in self.out.glob("checkpoint-*")), reverse=True)
        kept = {*steps[: self.settings.keep_checkpoints], self.progress.best_step if self.watch else -1}
        for step in steps:
            if step not in kept:
                shutil.rmtree(checkpoint_at(self.out, step))

    def _load(self, checkpoint: Path) -> None:
        self._load_weights(checkpoint)
        kept = torch.load(checkpoint / _OPTIMIZER, weights_only=True)
        self.optimizer.load_state_dict(kept["optimizer"])
        self.schedule.load_state_dict(kept["schedule"])
        if get_rank() < len(kept["random"]):
            _set_random_state(kept["random"][get_rank()], self.encoder.device)
        else:  # more ranks than before: this one has no saved state
            torch.manual_seed(self.seed + get_rank())
        self.progress = Progress(**json.loads((checkpoint / _STATE).read_text(encoding="utf-8")))

    def _load_weights(self, checkpoint: Path) -> None:
        saved: dict[str, Tensor] = torch.load(checkpoint / _WEIGHTS, weights_only=True)
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(saved[name])


def _random_state(device: torch.device) -> dict[str, Tensor]:
    gpu = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **gpu}


def _set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def trainable(encoder: Encoder) -> dict[str, nn.Parameter]:
    """The trainable parameters, by name; weights shared by both towers occur once."""
    return {name: weight for name, weight in encoder.model.named_parameters() if weight.requires_grad}


def freeze_passages(encoder: Encoder) -> None:
    """Leave only the query tower trainable. The towers must be separate."""
    if encoder.tower("query") is encoder.tower("passage"):
        raise ValueError("the towers share their weights: separate_towers first")
    for weight in encoder.tower("passage").parameters():
        weight.requires_grad_(False)


def add_adapter(encoder: Encoder, settings: LoraSettings, seed: int = 0) -> None:
    """Add a LoRA adapter to the backbone of ``encoder`` and freeze the rest; an existing adapter is trained further.

    The random half of a new adapter is a function of ``seed``.
    """
    config = lora_config(settings)
    roles: tuple[Role, Role] = ("query", "passage")
    for role in roles:
        backbone: Any = next(iter(encoder.tower(role).children())).model
        if not getattr(backbone, "_hf_peft_config_loaded", False):
            check_targets(backbone, settings)
            with seeded(derive_seed(seed, "adapter", role)):
                backbone.add_adapter(config)
        for name, weight in backbone.named_parameters():
            weight.requires_grad_("lora_" in name)  # a loaded adapter is frozen


def merge_adapters(encoder: Encoder) -> None:
    """Add the adapters of ``encoder`` to its weights; nothing is done where it has none."""
    for tower in {id(tower): tower for tower in map(encoder.tower, ("query", "passage"))}.values():  # type: ignore[arg-type]
        backbone: Any = next(iter(tower.children()))
        if getattr(backbone.model, "_hf_peft_config_loaded", False):
            merge_adapter(backbone.model)


def _decayed(weights: Mapping[str, nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices get weight decay, biases and norms do not."""
    matrices = [weight for weight in weights.values() if weight.ndim > 1]
    others = [weight for weight in weights.values() if weight.ndim <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
