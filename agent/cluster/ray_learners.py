"""Learners as processes of Ray Train: TRL's trainer over DDP, restarted from the newest checkpoint if one dies."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.cluster.config import ClusterSettings
from agent.cluster.interface import ClusterError
from sleuth.errors import last_line


def run_learners(
    work: Callable[[Callable[[Any], Any], bool], None], settings: ClusterSettings, storage: Path, starts: Path
) -> None:
    """Run ``work`` in every learner under Ray Train: DDP over gloo on CPUs, over NCCL on GPUs.

    ``work`` gets what puts a value into the object store, and whether an earlier life was lost. Ray Train ends and
    begins all of them again when one dies, at most ``settings.restarts`` times. ``starts``, a file on storage that all
    nodes share, gets a line each time.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    on_gpu = settings.learner.gpus > 0
    resources = {"CPU": settings.learner.cpus} | ({"GPU": settings.learner.gpus} if on_gpu else {})
    storage.mkdir(parents=True, exist_ok=True)
    starts.unlink(missing_ok=True)
    trainer = TorchTrainer(
        _Loop(work, starts.resolve(), on_gpu),
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
            f"the learners failed: {last_line(error)}", "the last checkpoint is whole: --resume goes on from it"
        ) from error


class _Loop:
    """The function that Ray Train runs. It adds the first learner's pid to the file ``starts``."""

    def __init__(self, work: Callable[[Callable[[Any], Any], bool], None], starts: Path, on_gpu: bool) -> None:
        self.__name__ = "learner"
        self._work = work
        self._starts = starts
        self._on_gpu = on_gpu

    def __call__(self) -> None:
        import ray
        import ray.train

        if not self._on_gpu:
            os.environ["ACCELERATE_USE_CPU"] = "true"
        restarted = self._starts.exists() and self._starts.stat().st_size > 0
        import torch.distributed

        torch.distributed.barrier()
        if ray.train.get_context().get_world_rank() == 0:
            with self._starts.open("a", encoding="ascii") as file:
                file.write(f"{os.getpid()}\n")
        self._work(ray.put, restarted)
