"""One process, Ray with one and two workers, synchronous and asynchronous, in one run: wall time, tokens, idleness.

    python benchmarks/cluster_speed.py --out runs/speed [--config configs/smoke.yaml] [--steps 10]
    python benchmarks/cluster_speed.py --broadcast smollm2

The first prints a row a variant and draws the reward of all (`rewards.png`); every variant starts from the same warm
start with the same seeds. Idle shares are of the time from the first rollout to the last update: a worker is idle when
it plays nothing, a retriever when it searches nothing, the learner while it waits for trajectories. The second
measures how long a policy's weights, and an adapter's, take into the object store and out of it in two actors.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from sleuth.layout import RunLayout

ROOT = Path(__file__).parents[1]
VARIANTS: dict[str, dict[str, Any] | None] = {
    "one process": None,
    "Ray, 1 worker": {"workers": 1},
    "Ray, 2 workers": {"workers": 2},
    "Ray, 1 worker, async": {"workers": 1, "schedule": "async"},
    "Ray, 2 workers, async": {"workers": 2, "schedule": "async"},
}


def settings_of(config: Path, out: Path, steps: int, cluster: dict[str, Any] | None) -> Any:
    from workflows.config import load_run_settings

    overrides = [f"grpo.steps={steps}", f"grpo.eval_steps={steps}", f"grpo.save_steps={steps}", "threads=1"]
    overrides += ["sinks=[jsonl]", "evaluation.modes=[]"]
    overrides += [f"cluster.{name}={value}" for name, value in (cluster or {}).items()]
    return load_run_settings(config, overrides, out)


def warm(config: Path, out: Path, steps: int) -> Path:
    from workflows.stages import run_stages

    run_stages(settings_of(config, out / "warm", steps, None), until="warmstart", resume=True, overwrite=False)
    return out / "warm"


def measure(name: str, config: Path, warm_folder: Path, folder: Path, steps: int) -> dict[str, Any]:
    from sleuth.runs import RunFolder
    from workflows.context import StageContext
    from workflows.learn import learn

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(warm_folder, folder, ignore=shutil.ignore_patterns("grpo", "config.yaml", ".lock", "metrics.jsonl"))
    settings = settings_of(config, folder, steps, VARIANTS[name])
    run = StageContext(settings, RunFolder(folder), resume=False)
    memory: dict[str, float] = {}
    searching = 0.0
    started = time.perf_counter()
    if settings.cluster is None:
        learn(run, None)
    else:
        from agent.cluster.roles import open_roles
        from workflows.cluster import run_plan

        with open_roles(settings.cluster, run_plan(run), run.layout.token) as roles:
            learn(run, roles.make_source())
            for actor in (*roles.workers, *roles.retrievers):
                status = actor.call("status").result(120)
                memory[actor.name] = status["peak_mib"]
                searching += status.get("busy_s", 0.0)
    return {**figures(folder, settings), "whole": time.perf_counter() - started, "memory": memory, "search": searching}


def figures(folder: Path, settings: Any) -> dict[str, float]:
    """Means over the steps but the first, which warms up."""
    from sleuth.sinks import read_metrics

    rows = [row for row in read_metrics(RunLayout(folder).metrics) if "reward" in row][1:]
    count = settings.grpo.questions * settings.grpo.group_size
    wall = sum(row["time/step"] for row in rows)
    waited = [
        row.get("cluster/waited", sum(row[f"time/{s}"] for s in ("generate", "retrieve", "score"))) for row in rows
    ]
    idle = [row["cluster/worker_idle"] for row in rows if "cluster/worker_idle" in row]
    return {
        "step": wall / len(rows),
        "tokens": sum(row["rollout/policy_tokens"] for row in rows) * count / wall,
        "learner_idle": sum(waited) / wall,
        "worker_idle": statistics.mean(idle) if idle else 1 - sum(waited) / wall,
        "broadcast": statistics.mean(row.get("cluster/broadcast", 0.0) for row in rows),
        "reward": statistics.mean(row["reward"] for row in rows[-3:]),
        "wall": wall,
    }


def compare(config: Path, out: Path, steps: int) -> None:
    from sleuth.curves import Curve, draw_curves
    from sleuth.sinks import read_metrics

    warm_folder = warm(config, out, steps)
    curves = []
    for name in VARIANTS:
        folder = out / name.replace(", ", "-").replace(" ", "-").lower()
        row = measure(name, config, warm_folder, folder, steps)
        search_idle = 1 - min(row["search"] / row["wall"], 1.0) if row["memory"] else float("nan")
        print(
            f"{name:22s} step {row['step']:6.2f} s  policy tokens/s {row['tokens']:7.1f}  idle: worker"
            f" {row['worker_idle']:4.0%} learner {row['learner_idle']:4.0%} retriever {search_idle:4.0%}"
            f"  broadcast {row['broadcast'] * 1000:5.0f} ms  reward {row['reward']:.3f}  whole {row['whole']:5.0f} s"
            f"  peak MiB {row['memory'] or ''}",
            flush=True,
        )
        points = [(r["step"], r["reward"]) for r in read_metrics(RunLayout(folder).metrics) if "reward" in r]
        curves.append(Curve(name, tuple(points)))
    draw_curves(curves, out / "rewards.png", title="reward by schedule", y_label="reward")


class Holder:
    """An actor with the model, which takes weights as a rollout worker does."""

    def __init__(self, model: str, lora: Any) -> None:
        self._model = _model(model, lora)

    def take(self, weights: Any) -> tuple[float, int]:
        import resource

        from agent.policies.weights import put_into

        started = time.perf_counter()
        put_into(self._model, weights)
        return time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


class MakeHolder:
    def __init__(self, model: str, lora: Any) -> None:
        self._given = (model, lora)

    def __call__(self) -> Holder:
        return Holder(*self._given)


def _model(name: str, lora: Any) -> Any:
    import torch

    from agent.config import PolicySettings
    from agent.policies.adapters import peft_config
    from agent.policies.loading import load_policy_model

    torch.set_num_threads(1)
    model, _ = load_policy_model(PolicySettings(model=name), name)
    if lora is None:
        return model
    from peft import get_peft_model

    return get_peft_model(model, peft_config(lora))


def broadcast(name: str, repeats: int) -> None:
    import tempfile

    from agent.cluster.config import ClusterSettings
    from agent.cluster.interface import Needs
    from agent.cluster.ray_cluster import RayCluster
    from agent.policies.weights import LiveWeights, send
    from hub.config import LoraSettings

    with tempfile.TemporaryDirectory() as folder:
        cluster = RayCluster(ClusterSettings(object_store_mb=3000), [], Path(folder) / "token", room=2)
        try:
            for what, lora in (("all weights", None), ("adapter r=16", LoraSettings())):
                model = _model(name, lora)
                actors = [cluster.spawn(f"{what} {i}", MakeHolder(name, lora), Needs("holder")) for i in range(2)]
                for version in range(repeats + 1):
                    started = time.perf_counter()
                    weights = send(LiveWeights(version, model))
                    reference = cluster.put(weights)
                    stored = time.perf_counter() - started
                    taken = [call.result(600) for call in [actor.call("take", reference) for actor in actors]]
                    whole = time.perf_counter() - started
                    if version:  # the first one makes the models
                        print(
                            f"{name}, {what}: {weights.nbytes / 2**20:.1f} MiB  into the store {stored:.3f} s"
                            f"  into the models {', '.join(f'{t:.3f}' for t, _ in taken)} s  all {whole:.3f} s"
                            f"  actors' peak MiB {[m for _, m in taken]}",
                            flush=True,
                        )
        finally:
            cluster.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/speed"))
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "smoke.yaml")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--broadcast", metavar="MODEL")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if given.broadcast:
        broadcast(given.broadcast, given.repeats)
    else:
        compare(given.config, given.out.resolve(), given.steps)


if __name__ == "__main__":
    main()
