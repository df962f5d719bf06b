"""What ``policy.cache_bytes`` saves in memory and costs in time: a rollout's peak and seconds, with and without.

    python benchmarks/rollout_memory.py [--bound 64MiB] [--rows 256] [--batch 16] [--turns 4] [--inserted 64]

A small but wide policy, made here, plays ``--rows`` trajectories in batches of ``--batch``: turns of sampled tokens
with random inserted ones between them, as an episode's observations are. Each rollout has a process of its own, so
that peaks do not mix; the first, of a single turn and batch, shows what Python, torch and the weights take. The tokens
must be equal. Leaves out retrieval and training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WIDE = {"hidden_size": 256, "layers": 4, "heads": 4, "intermediate_size": 344}
"""Keys and values of a token take 8 KiB in float32."""


def play(folder: str, bound: int | None, options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory in MiB, seconds, and a digest of the sampled tokens of one rollout in this process."""
    import numpy as np
    from transformers.utils.logging import disable_progress_bar

    from agent.config import PolicySettings
    from agent.policies.loading import load_policy_model
    from agent.policies.transformers_policy import TransformersPolicy
    from sleuth.types import Request, Sampling

    disable_progress_bar()
    model, codec = load_policy_model(PolicySettings(model=folder, device="cpu"), folder)
    policy = TransformersPolicy(model, codec, max_rows=options.batch, cache_bytes=bound)
    rng, size = np.random.default_rng(0), model.config.vocab_size
    prefixes = [rng.integers(10, size, options.inserted).tolist() for _ in range(options.rows)]
    digest, kept, started = hashlib.sha256(), 0, time.perf_counter()
    for turn in range(options.turns):
        requests = [Request(f"{i}#0", p, options.tokens, 1000 * turn + i) for i, p in enumerate(prefixes)]
        for prefix, generation in zip(prefixes, policy.generate(requests, Sampling(1.0)), strict=True):
            digest.update(json.dumps(generation.token_ids).encode())
            prefix += [*generation.token_ids, *rng.integers(10, size, options.inserted).tolist()]
        kept = max(kept, policy.kept_bytes)
    return {
        "seconds": time.perf_counter() - started,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "kept": kept / 2**20,
        "tokens": digest.hexdigest(),
    }


def elsewhere(folder: str, bound: str, options: argparse.Namespace, **changed: int) -> dict[str, Any]:
    """``play`` in a process of its own."""
    names = ("rows", "batch", "turns", "inserted", "tokens")
    numbers = [f"--{name}={changed.get(name, getattr(options, name))}" for name in names]
    command = [sys.executable, __file__, f"--bound={bound}", f"--model={folder}", *numbers]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    from pydantic import ByteSize, TypeAdapter

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bound", default="64MiB")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    for name, default in (("rows", 256), ("batch", 16), ("turns", 4), ("inserted", 64), ("tokens", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if options.model:
        bound = None if options.bound == "none" else int(TypeAdapter(ByteSize).validate_python(options.bound))
        print(json.dumps(play(options.model, bound, options)))
        return
    from agent.tiny import build_tiny_policy
    from agent.tiny_config import TinySettings

    with tempfile.TemporaryDirectory() as work:
        folder = str(Path(work) / "wide")
        build_tiny_policy(folder, [], TinySettings(**WIDE), 0)
        base = elsewhere(folder, "0", options, rows=options.batch, turns=1)
        print(f"one batch, one turn: peak {base['peak']:.0f} MiB")
        print(f"load of the machine: {os.getloadavg()[0]:.1f}")
        runs = {bound: elsewhere(folder, bound, options) for bound in ("none", options.bound, "0")}
    for bound, run in runs.items():
        print(
            f"bound {bound}: peak {run['peak']:.0f} MiB, {run['kept']:.0f} MiB kept between turns,"
            f" {run['seconds']:.1f} s"
        )
    print("tokens equal:", len({run["tokens"] for run in runs.values()}) == 1)


if __name__ == "__main__":
    main()
