"""Seconds of a step by what it does, and peak memory, at growing numbers of rows: the real trainer takes three steps.

The policy is the one carried, before any warm start: its rows are longer than they will be. The first step loads
kernels and is left out. A number of rows for which memory does not suffice is a finding, not a failure.
"""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.context import Context, Figures
from sleuth.errors import ConfigError
from sleuth.layout import RunLayout
from sleuth.sinks import read_metrics
from workflows.logs import quiet_libraries
from workflows.stages import run_stages

ROWS, FEW = (64, 128, 256, 512, 1024), (4, 8)
STEPS = 3


def measure(context: Context) -> dict[str, Any]:
    quiet_libraries()
    if context.settings().grpo is None:
        raise ConfigError("the config has no grpo section", "carry a config that trains")
    for rows in FEW if context.small else ROWS:
        context.parts.do(f"rows {rows}", lambda rows=rows: _steps(context, rows))
    return context.parts.all()


def _steps(context: Context, rows: int) -> Figures:
    grpo = context.settings().grpo
    assert grpo is not None
    group = min(grpo.group_size, rows)
    most = min(grpo.micro_batch or rows, rows)
    micro = next(size for size in range(most, 0, -1) if rows % size == 0)
    out = context.work / "speed" / f"rows-{rows}"
    shutil.rmtree(out, ignore_errors=True)  # of a process that was killed
    overrides = {
        "warmstart": "null",
        "demonstrations": "null",
        "grpo.gate": "null",
        "grpo.steps": STEPS,
        "grpo.questions": rows // group,
        "grpo.group_size": group,
        "grpo.minibatches": 1,
        "grpo.iterations": 1,
        "grpo.micro_batch": micro,
        "grpo.eval_limit": 1,
        "grpo.eval_steps": STEPS,
        "grpo.save_steps": STEPS,
        "grpo.save_trajectories": False,
        "evaluation.start_modes": "[]",
        "evaluation.limit": 1,
        "policy.max_rows": rows,
        "out": out,
    }
    if context.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        run_stages(
            context.settings(*(f"{key}={value}" for key, value in overrides.items())), resume=False, overwrite=True
        )
    except torch.OutOfMemoryError:
        return {"left_out": f"out of memory with micro-batches of {micro}"}
    finally:
        gc.collect()
        if context.on_gpu:
            torch.cuda.empty_cache()
    figures = {"micro_batch": micro, **_times(out)}
    if context.on_gpu:
        figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    shutil.rmtree(out)
    return figures


def _times(out: Path) -> Figures:
    """Means over the steps but the first: seconds by what was done, tokens of a row, searches."""
    steps = [row for row in read_metrics(RunLayout(out).metrics) if "time/step" in row][1:]
    names = [name for name in steps[0] if name.startswith("time/")]
    means = {f"{name.removeprefix('time/')}_s": sum(row[name] for row in steps) / len(steps) for name in names}
    kept = {"rollout/searches": "searches", "rollout/policy_tokens": "policy_tokens", "reward": "reward"}
    return means | {short: steps[-1][name] for name, short in kept.items() if name in steps[-1]}
