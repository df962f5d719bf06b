"""What keeping the key-value cache across turns gives: policy tokens a second, kept and not, in one run.

    python benchmarks/kv_cache.py MODEL [--rows 32] [--turns 4] [--inserted 100] [--tokens 16] [--repeats 3]

Rows go through turns of sampled tokens with random inserted ones between them, as an episode's
observations are. Both ways sample the same tokens; the repeats alternate. Leaves out retrieval.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from agent.config import PolicySettings
from agent.policies.loading import load_policy_model
from agent.policies.transformers_policy import TransformersPolicy
from sleuth.types import Request, Sampling


def episode_seconds(policy: TransformersPolicy, options: argparse.Namespace, vocabulary: int) -> tuple[float, int]:
    """Seconds and policy tokens of one batch of episodes."""
    rng = np.random.default_rng(0)
    prefixes = [rng.integers(10, vocabulary, options.inserted).tolist() for _ in range(options.rows)]
    sampled, started = 0, time.perf_counter()
    for turn in range(options.turns):
        requests = [Request(f"{i}#0", p, options.tokens, 1000 * turn + i) for i, p in enumerate(prefixes)]
        for prefix, generation in zip(prefixes, policy.generate(requests, Sampling(1.0)), strict=True):
            sampled += len(generation.token_ids)
            prefix += [*generation.token_ids, *rng.integers(10, vocabulary, options.inserted).tolist()]
    seconds = time.perf_counter() - started
    policy.release([f"{i}#0" for i in range(options.rows)])
    return seconds, sampled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    for name, default in (("rows", 32), ("turns", 4), ("inserted", 100), ("tokens", 16), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    model, codec = load_policy_model(PolicySettings(model=options.model), options.model)
    policies = {kept: TransformersPolicy(model, codec, keep_cache=kept) for kept in (True, False)}
    rates: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(options.repeats + 1):
        for kept, policy in policies.items():
            seconds, sampled = episode_seconds(policy, options, model.config.vocab_size)
            rates[kept].append(sampled / seconds)
    best = {kept: statistics.median(values[1:]) for kept, values in rates.items()}
    print(f"tokens a second: kept {best[True]:.1f}, not kept {best[False]:.1f}, ratio {best[True] / best[False]:.2f}")


if __name__ == "__main__":
    main()
