"""One rank of several (gloo), which leaves what its job finds: ``ranks_script.py JOB BACKBONE OUT RANK COUNT``."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from sleuth.types import Passage

sys.path.insert(0, str(Path(__file__).parent))


def work(job: str, backbone: str, out: str, rank: int, count: int) -> None:
    meet, patience = f"file://{out}/meet", timedelta(seconds=250)
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=count, timeout=patience)
    try:
        torch.save(JOBS[job](Path(backbone), Path(out)), Path(out) / f"{rank}.pt")
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def gradients(backbone: Path, out: Path) -> dict[str, torch.Tensor]:
    """Those of one step of seven queries, of one that has a query for the first rank only, of every family, and of all
    that can be added to the loss."""
    from families import EVERYTHING, FAMILIES, flops, instructable, rows, taught_rows
    from test_retrieval_training_run import settings

    from retrieval.training.objective import InBatch
    from retrieval.training.ranks import sum_gradients
    from retrieval.training.terms import terms_of
    from retrieval.training.trainer import trainable

    found = {}
    plain = [
        (family, count, rows(), {}) for family, count in [*((family, 7) for family in FAMILIES), ("multivector", 1)]
    ]
    everything = [("all", 7, taught_rows(), EVERYTHING), ("all", 1, taught_rows(), EVERYTHING)]
    for family, count, data, more in [*plain, *everything]:
        encoder = instructable(backbone) if family == "all" else FAMILIES[family](backbone)
        chosen = settings(batch_size=max(count, 2), micro_batch=2, **more)
        encoder.model.train().double()
        InBatch(data[:count], chosen, 0, terms_of(chosen, encoder) if more else flops).backward(encoder, 0)
        sum_gradients(trainable(encoder).values())
        for name, weight in trainable(encoder).items():
            if weight.grad is not None:
                found[f"{family} {count} {name}"] = weight.grad
    return found


def reranker_gradients(backbone: Path, out: Path) -> dict[str, torch.Tensor]:
    """Those of a reranker's step of three queries, whose pairs do not divide, by losses of pairs and of the step."""
    from families import rows

    from retrieval.passages import content_key
    from retrieval.training.ranks import sum_gradients
    from retrieval.training.rerankers.config import RerankerSettings
    from retrieval.training.rerankers.model import new_reranker
    from retrieval.training.rerankers.objective import RankLists
    from retrieval.training.trainer import trainable

    found = {}
    for loss, size in (("bce", 3), ("margin_mse", 3), ("bce", 1)):
        values = {"backbone": str(backbone), "batch_size": size, "micro_batch": 2, "loss": loss, "max_tokens": 32}
        taught = []
        for i, row in enumerate(rows()):
            more = replace(row, negatives=(*row.negatives, Passage(f"e{i}", "", "even")))
            own = (*more.positives, *more.negatives)
            taught.append(replace(more, scores={content_key(p): 2.0 - n * n for n, p in enumerate(own)}))
        chosen = RerankerSettings.model_validate(values)
        reranker: Any = new_reranker(chosen, seed=0)
        reranker.model.train().double()
        RankLists(taught, chosen, 0).backward(reranker, 0)
        sum_gradients(trainable(reranker).values())
        for name, weight in trainable(reranker).items():
            if weight.grad is not None:
                found[f"{loss} {size} {name}"] = weight.grad
    return found


def whole_and_resumed(backbone: Path, out: Path) -> list[dict[str, torch.Tensor]]:
    """The weights of a training, and those of one that all ranks died in and that was resumed."""
    from test_retrieval_training_run import DiesAt, Figures, Killed, plain, rows, run, settings, weights

    from retrieval.training.objective import InBatch
    from retrieval.training.trainer import train

    chosen = settings(batch_size=7)  # the ranks read different numbers of rows, so their random states part
    whole, resumed = plain(backbone), plain(backbone)
    run(whole, chosen, out / "whole")
    dying = DiesAt(InBatch(rows(), chosen, 0), 5)
    with pytest.raises(Killed):
        train(resumed, dying, chosen, out / "broken", seed=0, sink=Figures())
    torch.manual_seed(99)
    resumed = plain(backbone)
    run(resumed, chosen, out / "broken", resume=True)
    return [weights(whole), weights(resumed)]


def different_starts(backbone: Path, out: Path) -> dict[str, torch.Tensor]:
    """What a training of three steps ends with on a rank that began with an adapter of its own; and a mean of ranks."""
    from test_retrieval_training_run import plain, run, settings, weights

    from hub.config import LoraSettings
    from retrieval.training.ranks import mean_over_ranks
    from retrieval.training.trainer import add_adapter

    encoder = plain(backbone)
    add_adapter(encoder, LoraSettings(r=4, alpha=8), seed=distributed.get_rank())
    run(encoder, settings(steps=3), out / "run")
    figures = mean_over_ranks({"b": 10.0, "a": 1.0 + distributed.get_rank()}, encoder.device)
    return weights(encoder) | {name: torch.tensor(value) for name, value in figures.items()}


JOBS = {"gradients": gradients, "resume": whole_and_resumed, "reranker": reranker_gradients, "starts": different_starts}

if __name__ == "__main__":
    _, job, backbone, out, rank, count = sys.argv
    torch.set_num_threads(1)
    work(job, backbone, out, int(rank), int(count))
