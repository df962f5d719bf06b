"""Learners as processes of Ray Train: TRL's trainer over DDP, restarted from the newest checkpoint if one dies."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.cluster.config import ClusterSettings
from agent.cluster.interface import ClusterError


def run_learners(work: Callable[[Callable[[Any], Any], bool], None], settings: ClusterSettings, storage: Path) -> None:
    """Run ``work`` in every learner under Ray Train: DDP over gloo on CPUs, over NCCL on GPUs.

    ``work`` gets a function that puts a value into the object store, and whether this is a restart. If a learner dies,
    Ray Train restarts all of them, at most ``settings.restarts`` times.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    on_gpu = settings.learner.gpus > 0
    resources = {"CPU": settings.learner.cpus} | ({"GPU": settings.learner.gpus} if on_gpu else {})
    storage.mkdir(parents=True, exist_ok=True)
    lives = storage / "lives"
    lives.unlink(missing_ok=True)
    trainer = TorchTrainer(
        _Loop(work, lives.resolve(), on_gpu),
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.learners, use_gpu=on_gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name="learners",
            storage_path=str(storage.resolve()),
            failure_config=ray.train.FailureConfig(max_failures=settings.restarts),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise ClusterError(
            f"the learners failed: {_last_line(error)}", "the last checkpoint is intact: --resume continues from it"
        ) from error


class _Loop:
    """The function that Ray Train runs. A file in the run's storage gets a line per start: the first learner's pid."""

    def __init__(self, work: Callable[[Callable[[Any], Any], bool], None], lives: Path, on_gpu: bool) -> None:
        self.__name__ = "learner"
        self._work = work
        self._lives = lives
        self._on_gpu = on_gpu

    def __call__(self) -> None:
        import ray
        import ray.train

        if not self._on_gpu:
            os.environ["ACCELERATE_USE_CPU"] = "true"
        restarted = self._lives.exists() and self._lives.stat().st_size > 0
        import torch.distributed

        torch.distributed.barrier()
        if ray.train.get_context().get_world_rank() == 0:
            with self._lives.open("a", encoding="ascii") as file:
                file.write(f"{os.getpid()}\n")
        self._work(ray.put, restarted)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
