"""How many threads torch uses, and how they wait for one another. Imports without torch."""

from __future__ import annotations

import os
from pathlib import Path

WORK_OF_A_THREAD = 50_000_000
"""Multiply-adds of one forward pass below which another thread costs more than it saves (benchmarks/threads.py)."""
_SPINS = "10000"
_CHOSEN_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_WEIGHTS = (".safetensors", ".bin", ".gguf")


def wait_briefly() -> None:
    """Have OpenMP's idle threads sleep soon instead of spinning on. It counts only before torch is loaded.

    GNU's runtime, which torch's wheels for Linux carry, spins for some 10 ms at every barrier. That is quick on an
    idle machine; beside other programs the core is taken from the very thread that is waited for. A spin of a few
    hundred microseconds is as quick and gives the core away; other runtimes are told not to spin.
    """
    if not any(name in os.environ for name in _CHOSEN_BY_USER):
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": _SPINS}


def usable_cores() -> int:
    """Physical cores, or as many as affinity and control group leave to this process."""
    from joblib import cpu_count

    return int(cpu_count(only_physical_cores=True))


def threads_for(parameters: float, tokens: int, cores: int) -> int:
    """As many threads as a forward pass of ``tokens`` tokens through so many parameters has work for."""
    return max(1, int(min(cores, parameters * tokens / WORK_OF_A_THREAD)))


def use_threads(chosen: int | None, model: str | None = None, tokens: int = 4096) -> None:
    """Set torch's thread count: ``chosen``, else OMP_NUM_THREADS, else what model and machine make sensible.

    ``tokens`` go through ``model``, a folder or file, in one forward pass; the default stands for training and for
    encoding passages. A model whose size is not known here counts as large. Results are bit-identical at equal
    counts only. Where torch's own count suits it is not set, as setting it lets MKL order its sums in another way.
    """
    if chosen is None and "OMP_NUM_THREADS" in os.environ:
        return
    import torch

    suits = chosen or threads_for(_parameters(model), tokens, usable_cores())
    if chosen or suits != torch.get_num_threads():
        torch.set_num_threads(suits)


def _parameters(model: str | None) -> float:
    """How many parameters of four bytes the weights in a folder or file may be; infinity where none are found."""
    path = Path(model or "")
    files = [path] if path.is_file() else path.glob("*") if model and path.is_dir() else []
    size = sum(file.stat().st_size for file in files if file.suffix in _WEIGHTS)
    return size / 4 if size else float("inf")
