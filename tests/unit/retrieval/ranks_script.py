"""Train on several ranks (gloo) and leave the weights of each: ``ranks_script.py BACKBONE OUT COUNT``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed, multiprocessing

sys.path.insert(0, str(Path(__file__).parent))


def work(rank: int, backbone: str, out: str, count: int) -> None:
    from test_retrieval_training_run import plain, run, settings

    from retrieval.training.trainer import trainable

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=count)
    encoder = plain(Path(backbone))
    run(encoder, settings(steps=2, batch_size=8), Path(out) / "several")
    torch.save({name: weight.detach() for name, weight in trainable(encoder).items()}, Path(out) / f"rank-{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    _, backbone, out, count = sys.argv
    multiprocessing.spawn(work, args=(backbone, out, int(count)), nprocs=int(count))
