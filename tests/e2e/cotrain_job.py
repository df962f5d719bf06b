"""Co-training of a minute: a very small world, a policy that has learned little, and an encoder that has too.

Run as a program, it is killed the hard way at each of the moments that it is given, one after the other, goes on each
time, and ends: ``cotrain_job.py OUT MOMENT...``. A moment is ``mark:STAGE``, when the work of a stage is done and not
recorded, or ``START:n``, the n-th time that something begins: ``play`` a batch of episodes, ``learn`` a step of an
encoder, ``update`` a step of GRPO.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from sleuth.settings import read_layers, validate
from workflows.config import fill_out
from workflows.cotrain.config import CotrainRun

CONFIGS = Path(__file__).parents[2] / "configs"
SIZES = {"films": 40, "people": 40, "companies": 20, "cities": 20, "countries": 8, "train": 120, "dev": 6, "test": 6}
WORLD = {**SIZES, "paraphrase": 0.3, "kinds": {"two_hop": 0, "three_hop": 0, "comparison": 0, "yes_no": 0}}


def cotrain_settings(out: Path, **changes: Any) -> CotrainRun:
    """Settings of one round; ``changes`` replace parts of the section ``cotrain``."""
    values = read_layers(CONFIGS / "cotrain_world.yaml")
    chosen = values["cotrain"]
    encoder = chosen["start"]["encoder"] | {"scratch": chosen["start"]["encoder"]["scratch"] | {"hidden_size": 32}}
    quick = {"kind": "in_batch", "batch_size": 8, "steps": 4, "save_steps": 2, "learning_rate": 1e-3}
    start = chosen["start"] | {"encoder": encoder, "training": quick | {"steps": 40, "hard_negatives": 0}}
    chosen |= {
        "rounds": 1,
        "questions": 10,
        "group_size": 2,
        "labels": {"kind": "outcomes", "right_from": 0.0},  # a policy that has learned little is never right
        "start": start,
        "retriever": {"training": quick},
    }
    values |= {
        "out": str(out),
        "world": WORLD,
        "policy": {"tiny": {"layers": 2, "hidden_size": 64}},
        "evaluation": {"bootstrap": 20, "batch_size": 10},
        "sinks": ["jsonl"],
        "rewards": [{"kind": "f1"}, {"kind": "search_cost"}],  # which differ in a group though nothing is right
        "cotrain": chosen | changes,
    }
    values["environment"] |= {"turns": 3, "searches": 2, "turn_tokens": 32}
    values["demonstrations"] |= {"lazy_kinds": ["one_hop"], "lazy": 0.0}
    values["warmstart"] |= {"steps": 80, "batch_size": 8, "warmup_steps": 5, "save_steps": 80}
    values["grpo"] |= {"steps": 2, "questions": 2, "group_size": 2, "eval_steps": 2, "save_steps": 1, "eval_limit": 4}
    return validate(CotrainRun, fill_out(values), "the co-training of a minute")


def run(settings: CotrainRun, *, resume: bool = False) -> list[dict[str, Any]]:
    from cli.console import counting
    from workflows.cotrain.loop import run_cotraining

    return run_cotraining(settings, resume=resume, overwrite=False, counting=counting)


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str) -> None:
    """Have this process die at ``moment``."""
    from agent.learning.callbacks import GradientGuard
    from agent.rollout import RolloutDriver
    from retrieval.training.objective import InBatch
    from sleuth.runs import RunFolder

    what, _, which = moment.partition(":")
    if what == "mark":
        mark = RunFolder.mark_done
        RunFolder.mark_done = lambda self, name, info=None: die() if name == which else mark(self, name, info)
        return
    kind, name = {
        "play": (RolloutDriver, "run"),
        "learn": (InBatch, "backward"),
        "update": (GradientGuard, "on_pre_optimizer_step"),
    }[what]
    begin, times = getattr(kind, name), [0]

    def dying(*given: Any, **more: Any) -> Any:
        times[0] += 1
        return die() if times[0] == int(which) else begin(*given, **more)

    setattr(kind, name, dying)


def in_a_child(settings: CotrainRun, moment: str | None, *, resume: bool) -> int:
    """Run in a fork, which shares what is imported; returns how it ended, as os.waitpid says."""
    child = os.fork()
    if child == 0:
        try:
            if moment is not None:
                arm(moment)
            run(settings, resume=resume)
            os._exit(0)
        except BaseException:  # noqa: BLE001 (a child that failed must not go on as the parent)
            import traceback

            traceback.print_exc()
            os._exit(1)
    return os.waitpid(child, 0)[1]


def main() -> None:
    for name in ("workflows.cotrain.loop", "retrieval.training.pipeline", "agent.learning.trainer"):
        importlib.import_module(name)  # once, before the forks

    settings = cotrain_settings(Path(sys.argv[1]))
    for number, moment in enumerate(sys.argv[2:]):
        status = in_a_child(settings, moment, resume=number > 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"{moment} did not come: status {status}")
    sys.exit(os.waitstatus_to_exitcode(in_a_child(settings, None, resume=len(sys.argv) > 2)))


if __name__ == "__main__":
    main()
