"""One rank of several (gloo), which leaves its gradients: ``ranks_script.py BACKBONE OUT RANK COUNT``."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

sys.path.insert(0, str(Path(__file__).parent))


def work(backbone: str, out: str, rank: int, count: int) -> None:
    from test_retrieval_training_run import gradients_of_a_step, plain

    meet, patience = f"file://{out}/meet", timedelta(seconds=250)
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=count, timeout=patience)
    try:
        torch.save(gradients_of_a_step(plain(Path(backbone))), Path(out) / f"{rank}.pt")
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    _, backbone, out, rank, count = sys.argv
    torch.set_num_threads(1)
    work(backbone, out, int(rank), int(count))
