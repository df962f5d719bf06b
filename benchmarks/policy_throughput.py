"""Policy tokens a second of the vLLM backend, of the transformers backend and of TRL's own generation, in one run.

    python benchmarks/policy_throughput.py MODEL [--rows 8] [--shared 280] [--turns 3] [--tokens 32] [--repeats 2]

The same prompts for all: one turn and several, with a long prefix that all prompts share and without one. Between
turns random tokens are inserted, as an episode's passages are. Both backends give log-probs of what they sample;
TRL's generation gives none, so it is measured with less to do. Leaves out retrieval, scoring and the first call,
which warms up. The order of the three changes with every repeat.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from agent.config import PolicySettings
from agent.policies.config import VllmSettings
from agent.policies.loading import load_policy_model
from agent.policies.transformers_policy import TransformersPolicy
from agent.policies.vllm_policy import open_vllm_policy
from sleuth.types import Request, Sampling

Sample = Callable[[list[list[int]], int], list[list[int]]]
"""Prefixes and the turn's number to what was sampled after each."""


def from_policy(policy: Any, tokens: int) -> Sample:
    def sample(prefixes: list[list[int]], turn: int) -> list[list[int]]:
        requests = [Request(f"{i}#0", p, tokens, 1000 * turn + i) for i, p in enumerate(prefixes)]
        return [list(g.token_ids) for g in policy.generate(requests, Sampling(1.0))]

    return sample


def from_trl(model: Any, tokenizer: Any, tokens: int) -> Sample:
    """TRL's generation of one turn, whole prefixes anew in every turn, as its own loops do."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    out = tempfile.mkdtemp()
    args = GRPOConfig(
        output_dir=out, use_cpu=model.device.type == "cpu", max_completion_length=tokens, temperature=1.0, report_to=[]
    )
    rows = Dataset.from_list([{"prompt": "x"}] * 8)
    trainer = GRPOTrainer(
        model=model, reward_funcs=lambda **_: [0.0], args=args, train_dataset=rows, processing_class=tokenizer
    )

    def sample(prefixes: list[list[int]], _turn: int) -> list[list[int]]:
        completions, _ = trainer._generate_single_turn(prefixes, None, {}, 1)
        return [list(map(int, ids)) for ids in completions]

    return sample


def play(sample: Sample, options: argparse.Namespace, turns: int, shared: int, words: int) -> tuple[int, float]:
    """Policy tokens and seconds of one batch of episodes; prompts are the same for every ``sample``."""
    rng = np.random.default_rng(options.seed + turns + shared)
    head = rng.integers(10, words, shared).tolist()
    prefixes = [[*head, *rng.integers(10, words, options.prompt - shared).tolist()] for _ in range(options.rows)]
    sampled, seconds = 0, 0.0
    for turn in range(turns):
        started = time.perf_counter()
        done = sample(prefixes, turn)
        seconds += time.perf_counter() - started
        sampled += sum(map(len, done))
        inserted = rng.integers(10, words, (options.rows, options.inserted)).tolist()
        prefixes = [[*p, *ids, *more] for p, ids, more in zip(prefixes, done, inserted, strict=True)]
    return sampled, seconds


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    settings = PolicySettings(
        model=options.model,
        dtype=options.dtype,
        max_rows=options.rows,
        vllm=VllmSettings(block_size=32, max_tokens=options.limit, cache_gib=options.cache_gib),
    )
    engine, codec = open_vllm_policy(settings, options.model)
    model, _ = load_policy_model(settings, options.model)
    own = TransformersPolicy(model, codec, max_rows=options.rows)
    samplers = {
        "vllm": from_policy(engine, options.tokens),
        "transformers": from_policy(own, options.tokens),
        "trl": from_trl(model, codec.tokenizer, options.tokens),
    }
    words = min(model.config.vocab_size, 40_000)
    cases = list(itertools.product((1, options.turns), (0, options.shared)))
    rates: dict[tuple[int, int, str], list[float]] = {(*case, name): [] for case in cases for name in samplers}
    for repeat in range(options.repeats + 1):
        options.seed = repeat
        names = [*samplers][repeat % 3 :] + [*samplers][: repeat % 3]
        for (turns, shared), name in itertools.product(cases, names):
            sampled, seconds = play(samplers[name], options, turns, shared, words)
            own.release([f"{i}#0" for i in range(options.rows)])
            if repeat:
                rates[turns, shared, name].append(sampled / seconds)
    return [
        {"turns": turns, "shared": shared}
        | {name: round(statistics.median(rates[turns, shared, name]), 1) for name in samplers}
        for turns, shared in cases
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    numbers = {"rows": 8, "prompt": 300, "shared": 280, "turns": 3, "inserted": 60, "tokens": 32, "repeats": 2}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--limit", type=int, default=1024, help="longest transcript, tokens")
    parser.add_argument("--cache-gib", type=float, default=1.0)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} at the start; {options.rows} rows, {options.tokens} new tokens a turn")
    for row in measure(options):
        row |= {f"vllm / {other}": round(row["vllm"] / row[other], 2) for other in ("transformers", "trl")}
        print(json.dumps(row), flush=True)
    print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
