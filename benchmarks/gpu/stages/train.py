"""The run itself, as far as its time goes: steps that fit, checkpoints every minute, and on from the last of them.

How many steps there are is decided once, before the first, from what the stage ``speed`` measured; without its figures
the config's own number stands, and the run ends where its time does.
"""

from __future__ import annotations

from typing import Any

import torch

from agent.config import GrpoSettings
from benchmarks.gpu.context import Context
from sleuth.layout import STAGES, RunLayout, read_record, write_record
from sleuth.sinks import read_metrics
from workflows.logs import quiet_libraries
from workflows.stages import run_stages

FOR_STEPS = 0.6
"""Share of the stage's time that is planned for GRPO's steps; the rest is for warm start and evaluations."""
CHECKPOINT_S = 60.0


def train(context: Context) -> dict[str, Any]:
    quiet_libraries()
    plain = context.settings()
    overrides = [f"out={context.work / 'run'}"]
    if plain.grpo is not None:
        planned = read_record(context.work / "plan.json")
        if planned is None:
            speed = read_record(context.work / "stages" / "speed.parts.json") or {}
            planned = plan(plain.grpo, speed, context.seconds)
            write_record(context.work / "plan.json", planned)
        print(f"plan: {planned}", flush=True)
        overrides += [f"grpo.{key}={value}" for key, value in planned.items()]
    run = run_stages(context.settings(*overrides), resume=True, overwrite=False)
    return {**_found(run.layout), "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if context.on_gpu else None}


def plan(grpo: GrpoSettings, speed: dict[str, dict[str, Any]], seconds: float) -> dict[str, int]:
    """Steps that fit, and after how many of them the run is evaluated and saved; nothing if no step was measured.

    A step's time is taken in proportion to its rows, from the measurement nearest to them.
    """
    rows, updates = grpo.questions * grpo.group_size, grpo.updates_per_rollout
    measured = {int(name.split()[1]): one["step_s"] for name, one in speed.items() if "step_s" in one}
    if not measured:
        return {}
    nearest = min(measured, key=lambda count: abs(count - rows))
    rollout_s = measured[nearest] * rows / nearest
    most = max(int(FOR_STEPS * seconds / rollout_s), 1)
    rollouts = min(most, grpo.rollouts)
    between = max(min(round(CHECKPOINT_S / rollout_s), rollouts), 1)
    return {
        "steps": rollouts * updates,
        "save_steps": between * updates,
        "eval_steps": max(rollouts // 5, 1) * updates,
    }


def _found(layout: RunLayout) -> dict[str, Any]:
    """The records of the run's stages, and its dev evaluations by step."""
    rows = list(read_metrics(layout.metrics)) if layout.metrics.exists() else []
    dev = {str(row["step"]): row["dev/em"] for row in rows if "dev/em" in row}
    return {
        "steps": max((row["step"] for row in rows), default=0),
        "dev_em": dev,
        "stages": {name: read_record(layout.stage(name)) for name in STAGES if layout.stage(name).exists()},
    }
