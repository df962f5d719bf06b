"""Break a cluster in every way that is promised to be survived, and count what comes out.

    python benchmarks/cluster_faults.py --out runs/faults [--only worker,retriever,...] [--steps 3]

Every row is a whole GRPO stage of a small run (configs/smoke.yaml after its warm start) on a Ray of its own. Questions
in must be trajectories out plus unscored ones, and the parameters' hash that of the run without a fault, but for the
straggler whose questions are left unscored. The node that is lost needs root: it lives in a network namespace.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleuth.checkpoints import COMPLETE, checkpoint_at
from sleuth.layout import RunLayout, read_record

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "smoke.yaml"
Inject = Callable[[Any], None]


@dataclass(frozen=True)
class Row:
    fault: str
    questions: float
    trajectories: float
    unscored: float
    again: float
    hash: str
    seconds: float
    note: str = ""

    def line(self, expected: str) -> str:
        same = "same" if self.hash == expected else "other"
        whole = "whole" if self.questions == self.trajectories + self.unscored else "LOST"
        return (
            f"{self.fault:22s} in {self.questions:4.0f}  out {self.trajectories:4.0f}  unscored {self.unscored:3.0f}"
            f"  {whole}  played again {self.again:2.0f}  {self.hash} {same}  {self.seconds:6.1f} s  {self.note}"
        )


def settings_of(out: Path, steps: int, **cluster: Any) -> Any:
    from workflows.config import load_run_settings

    chosen = {"workers": 2, "deadline_s": 300, **cluster}
    overrides = [f"cluster.{name}={value}" for name, value in chosen.items()]
    overrides += [f"grpo.steps={steps}", "grpo.eval_steps=50", "grpo.save_steps=1", "threads=1", "sinks=[jsonl]"]
    overrides += ["evaluation.modes=[]"]
    return load_run_settings(CONFIG, overrides, out)


def warm(out: Path, steps: int) -> Path:
    """A run up to its warm start, made once and copied for every fault."""
    from workflows.stages import run_stages

    folder = out / "warm"
    run_stages(settings_of(folder, steps), until="warmstart", resume=True, overwrite=False)
    return folder


def copy_of(warm_folder: Path, out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(warm_folder, out, ignore=shutil.ignore_patterns("grpo", "config.yaml", ".lock"))
    return out


def train(name: str, folder: Path, inject: Inject | None, note: str = "", steps: int = 3, **cluster: Any) -> Row:
    """The GRPO stage with its roles on Ray, while ``inject`` does its harm in a thread."""
    from agent.cluster.roles import open_roles, source_maker
    from sleuth.runs import RunFolder
    from workflows.cluster import run_plan
    from workflows.context import StageContext
    from workflows.learn import learn

    settings = settings_of(folder, steps, **cluster)
    run = StageContext(settings, RunFolder(folder), resume=True)
    plan, controls = run_plan(run), []
    with open_roles(settings.cluster, plan, run.layout.token) as roles:

        def control(codec: Any) -> Any:
            controls.append(roles.controller(codec))
            return controls[0]

        harm = threading.Thread(target=inject, args=[roles], daemon=True) if inject else None
        if harm:
            harm.start()
        started = time.perf_counter()
        learn(run, source_maker(control, roles.cluster.put, settings.cluster, plan))
        seconds = time.perf_counter() - started
        if harm:
            harm.join(60)
        counts = controls[0].counts()
        retried = [actor.call("status").result(60) for actor in roles.retrievers]
    again = counts["lost"] + counts["resent"]
    searches = f"searches {sum(status['searches'] for status in retried)} of {sum(s['calls'] for s in retried)} calls"
    text = f"{note}; {searches}" if note else searches
    figures = (counts["questions"], counts["trajectories"], counts["unscored"], again)
    return Row(name, *figures, hash_of(folder), seconds, text)


def hash_of(folder: Path) -> str:
    from safetensors.torch import load_file

    newest = RunLayout(folder).newest_checkpoint()
    assert newest is not None
    total = hashlib.sha256()
    for key, tensor in sorted(load_file(next(newest.glob("*model.safetensors"))).items()):
        total.update(key.encode() + tensor.numpy().tobytes())
    return total.hexdigest()[:12]


def while_playing(roles: Any) -> dict[str, Any]:
    """The status of a worker that is in the middle of an episode."""
    while True:
        with contextlib.suppress(Exception):
            for worker in roles.workers:
                status = worker.call("status").result(30)
                if status["playing"] and status["version"] >= 1:
                    return {**status, "actor": worker}
        time.sleep(0.05)


def kill_worker(roles: Any) -> None:
    os.kill(while_playing(roles)["pid"], signal.SIGKILL)


def kill_retriever(roles: Any) -> None:
    while_playing(roles)
    os.kill(roles.retrievers[0].call("status").result(60)["pid"], signal.SIGKILL)


def stop_worker(roles: Any) -> None:
    os.kill(while_playing(roles)["pid"], signal.SIGSTOP)


def fill_store(roles: Any) -> None:
    """Hold more than the object store has room for while the run goes on."""
    import numpy as np

    while_playing(roles)
    kept = [roles.cluster.put(np.ones(20 * 2**20, dtype=np.uint8)) for _ in range(8)]
    time.sleep(20)
    del kept


def base(out: Path, warm_folder: Path, steps: int) -> Row:
    return train("none", copy_of(warm_folder, out / "base"), None, steps=steps)


def worker(out: Path, warm_folder: Path, steps: int) -> Row:
    return train("worker killed", copy_of(warm_folder, out / "worker"), kill_worker, steps=steps)


def retriever(out: Path, warm_folder: Path, steps: int) -> Row:
    return train("retriever killed", copy_of(warm_folder, out / "search"), kill_retriever, steps=steps)


def straggler(out: Path, warm_folder: Path, steps: int) -> Row:
    folder = copy_of(warm_folder, out / "straggler")
    return train("straggler sent again", folder, stop_worker, steps=steps, deadline_s=30)


def store(out: Path, warm_folder: Path, steps: int) -> Row:
    folder = copy_of(warm_folder, out / "store")
    return train("object store full", folder, fill_store, steps=steps, object_store_mb=80)


def command(out: Path, steps: int, *more: str) -> list[str]:
    given = settings_of(out, steps)
    overrides = [f"grpo.steps={steps}", "grpo.eval_steps=50", "grpo.save_steps=1", "threads=1", "sinks=[jsonl]"]
    overrides += ["evaluation.modes=[]", "cluster.workers=2", f"cluster.deadline_s={given.cluster.deadline_s}", *more]
    sets = [word for override in overrides for word in ("--set", override)]
    return [sys.executable, "-m", "cli.main", "train", str(CONFIG), "--out", str(out), "--resume", *sets]


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    while not path.exists():
        if process.poll() is not None:
            raise SystemExit(f"the run ended before {path} was there")
        time.sleep(0.1)


def strangers(mark: str) -> list[int]:
    """Processes whose environment names ``mark``: what a run has left behind."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def ended(mark: str, seconds: float) -> str:
    deadline = time.monotonic() + seconds
    while (left := strangers(mark)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return f"{len(left)} processes left"


def controller(out: Path, warm_folder: Path, steps: int) -> Row:
    """SIGKILL to the controller after a checkpoint, then --resume."""
    return _ended_and_resumed("controller killed", out / "controller", warm_folder, steps, signal.SIGKILL)


def interrupt(out: Path, warm_folder: Path, steps: int) -> Row:
    """Ctrl-C after a checkpoint: nothing may be left; then --resume."""
    return _ended_and_resumed("Ctrl-C", out / "interrupt", warm_folder, steps, signal.SIGINT)


def first_checkpoint(folder: Path) -> Path:
    """The mark of the first checkpoint after the start."""
    return checkpoint_at(RunLayout(folder).grpo.checkpoints, 1) / COMPLETE


def _ended_and_resumed(name: str, out: Path, warm_folder: Path, steps: int, sign: signal.Signals) -> Row:
    folder = copy_of(warm_folder, out)
    mark = f"SLEUTH_FAULT={folder}"
    environment = {**os.environ, "SLEUTH_FAULT": str(folder)}
    # What a shell starts in the background ignores an interrupt; this must not.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command(folder, steps), env=environment, stderr=subprocess.DEVNULL, preexec_fn=heed)
    wait_for(first_checkpoint(folder), process)
    process.send_signal(sign)
    status = process.wait(120)
    left = ended(mark, 60)
    return train(name, folder, None, steps=steps, note=f"exit status {status}, {left}")


def learner(out: Path, warm_folder: Path, steps: int) -> Row:
    """One of two DDP learners of Ray Train is killed; all begin again from the checkpoint."""
    rows = [_learners(out / f"learner-{name}", warm_folder, steps, kill) for name, kill in (("a", False), ("b", True))]
    same = "same as without the kill" if rows[0].hash == rows[1].hash else f"NOT that without the kill ({rows[0].hash})"
    return Row(**{**vars(rows[1]), "note": f"{rows[1].note}, {same}"})


def _learners(folder: Path, warm_folder: Path, steps: int, kill: bool) -> Row:
    copy_of(warm_folder, folder)
    process = subprocess.Popen(command(folder, steps, "cluster.learners=2", "grpo.micro_batch=6"))
    started = time.perf_counter()
    if kill:
        wait_for(first_checkpoint(folder), process)
        os.kill(int(RunLayout(folder).learner_starts.read_text().split()[-1]), signal.SIGKILL)
    status = process.wait()
    counts = read_record(RunLayout(folder).grpo.counts)
    assert counts is not None
    lives = len(RunLayout(folder).learner_starts.read_text().splitlines())
    figures = (counts["questions"], counts["trajectories"], counts["unscored"], counts["lost"] + counts["resent"])
    note = f"exit status {status}, {lives} lives"
    return Row("learner killed", *figures, hash_of(folder), time.perf_counter() - started, note)


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[tuple[str, str]]:
    """A head here and a node in a network namespace of its own; the head's address and the link to cut."""
    space, here, there = "sleuthfault", "veth-sl0", "veth-sl1"
    address, port = "10.231.0.1", 6390
    ip = lambda *words: subprocess.run(["ip", *words], check=True)
    own = [sys.executable, "-m", "cli.main", "cluster", str(CONFIG), "--out", str(folder)]
    processes: list[subprocess.Popen[bytes]] = []
    ip("netns", "add", space)
    try:
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", space)
        ip("addr", "add", f"{address}/24", "dev", here)
        ip("link", "set", here, "up")
        for words in (
            ("addr", "add", "10.231.0.2/24", "dev", there),
            ("link", "set", there, "up"),
            ("link", "set", "lo", "up"),
        ):
            ip("netns", "exec", space, "ip", *words)
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        processes.append(subprocess.Popen([*own, "--head", "--ip", address, "--port", str(port)], **quiet))
        time.sleep(20)
        join = ["ip", "netns", "exec", space, *own, "--join", f"{address}:{port}", "--ip", "10.231.0.2"]
        processes.append(subprocess.Popen(join, **quiet))
        time.sleep(30)
        yield f"{address}:{port}", here
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            process.wait(60)
        ip("netns", "delete", space)


def everyone(roles: Any) -> list[Any]:
    return [*roles.workers, *roles.retrievers]


def node(out: Path, warm_folder: Path, steps: int) -> Row:
    """The link of a second node is cut while its worker plays."""
    folder = copy_of(warm_folder, out / "node")
    seen: list[float] = []
    with two_nodes(folder) as (address, link):

        def cut(roles: Any) -> None:
            from agent.cluster.interface import WorkerLostError

            while_playing(roles)
            subprocess.run(["ip", "link", "set", link, "down"], check=True)
            started = time.perf_counter()
            calls = [actor.call("status") for actor in everyone(roles)]
            while time.perf_counter() - started < 120:
                ended = [call.done() for call in calls]
                if any(e and isinstance(c.exception(), WorkerLostError) for e, c in zip(ended, calls, strict=True)):
                    seen.append(time.perf_counter() - started)
                    return
                asked = zip(everyone(roles), calls, ended, strict=True)
                calls = [actor.call("status") if e else call for actor, call, e in asked]
                time.sleep(0.1)

        share = {"worker.cpus": 0.5, "retriever.cpus": 0.5}  # so that the node that is left has room for all
        row = train("node cut off", folder, cut, steps=steps, address=address, placement="SPREAD", **share)
    return Row(**{**vars(row), "note": f"noticed after {seen[0]:.1f} s; {row.note}" if seen else "never noticed"})


FAULTS = {
    "base": base,
    "worker": worker,
    "retriever": retriever,
    "straggler": straggler,
    "store": store,
    "controller": controller,
    "interrupt": interrupt,
    "learner": learner,
    "node": node,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    parser.add_argument("--only", default=",".join(FAULTS))
    parser.add_argument("--steps", type=int, default=3)
    given = parser.parse_args()
    out = given.out.resolve()
    warm_folder = warm(out, given.steps)
    wanted = given.only.split(",")
    unbroken = base(out, warm_folder, given.steps)
    print(unbroken.line(unbroken.hash), flush=True)
    failed = False
    for name in (name for name in wanted if name != "base"):
        try:
            print(FAULTS[name](out, warm_folder, given.steps).line(unbroken.hash), flush=True)
        except Exception as error:  # noqa: BLE001 - the others are still to be measured
            failed = True
            print(f"{name:22s} FAILED: {type(error).__name__}: {error}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
