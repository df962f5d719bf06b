"""What a run on this machine will cost: tokens a second of each stage, and the hours of a plan.

    python benchmarks/real_budget.py [--plan CONFIG.yaml] [--model smollm2] [--kinds full lora] [--micro 1 4]
        [--searches 1] [--rows 8] [--threads 1] [--rates FILE.json]

Measures on rows of random tokens of the plan's shape (a prompt, then for each search a turn and a window, an answer):
the warm start (cross entropy over policy tokens, forward and backward), sampling over several turns (transformers, and
vLLM where it is installed), the reference (forward alone) and GRPO's update (log-probs of sampled tokens, forward and
backward), for all weights and for an adapter and by rows of a micro-batch; and an optimizer step. Retrieval and scoring
take a hundredth of it and are left out. Seconds are wall time, and CPU time of this process beside it: on a busy
machine the second says what an idle one would do. ``--rates`` keeps what was measured, and reads it the next time, so
that other plans cost nothing to work out.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent.config import PolicySettings
from agent.learning.options import load_trained
from agent.policies.adapters import peft_config
from agent.policies.config import VllmSettings
from agent.policies.loading import load_policy_model
from agent.policies.transformers_policy import TransformersPolicy
from hub.config import LoraSettings
from hub.threads import use_threads
from sleuth.errors import SleuthError
from sleuth.types import Request, Sampling
from workflows.config import RunSettings, load_run_settings

PROMPT, TURN, WINDOW = 40, 32, 110
"""Tokens of a short prompt, of a policy's turn, and of a window of 64 words with its tags."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens of one stage and the seconds they took."""

    tokens: int
    wall: float
    cpu: float

    @property
    def by_wall(self) -> float:
        return self.tokens / max(self.wall, 1e-9)

    @property
    def by_cpu(self) -> float:
        return self.tokens / max(self.cpu, 1e-9)


@dataclass(frozen=True, slots=True)
class Shape:
    """A row of a plan, in tokens."""

    searches: float

    @property
    def sampled(self) -> float:
        return (self.searches + 1) * TURN

    @property
    def whole(self) -> float:
        return PROMPT + self.sampled + self.searches * WINDOW


def measured(work: Callable[[], int]) -> Rate:
    """The rate of ``work``, which returns how many tokens it went through."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = work()
    return Rate(tokens, time.perf_counter() - wall, time.process_time() - cpu)


def rows_of(count: int, length: int, words: int) -> torch.Tensor:
    """Random token ids [count, length]."""
    return torch.from_numpy(np.random.default_rng(0).integers(10, words, (count, length)))


def train_rates(policy: PolicySettings, lora: LoraSettings | None, micros: list[int], length: int) -> dict[str, Rate]:
    """Warm start, reference and update by micro-batch, and a step of AdamW (its tokens are 1)."""
    from peft import get_peft_model
    from torch.nn.functional import cross_entropy

    model, _ = load_trained(policy, policy.model or "", lora)
    model = get_peft_model(model, peft_config(lora)) if lora else model
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    words = min(model.config.vocab_size, 40_000)
    rates: dict[str, Rate] = {}
    for micro in micros:
        ids = rows_of(micro, length, words)
        learned = torch.arange(length - 1) % (TURN + WINDOW) < TURN  # the policy's share of a row

        def warm(ids: torch.Tensor = ids, learned: torch.Tensor = learned) -> int:
            logits = model(input_ids=ids).logits[:, :-1][:, learned]
            cross_entropy(logits.flatten(0, 1), ids[:, 1:][:, learned].flatten()).backward()
            return ids.numel()

        def update(ids: torch.Tensor = ids, learned: torch.Tensor = learned) -> int:
            logits = model(input_ids=ids).logits[:, :-1][:, learned]
            chosen = logits.log_softmax(-1).gather(-1, ids[:, 1:][:, learned].unsqueeze(-1)).squeeze(-1)
            ((chosen - chosen.detach()).exp() * torch.linspace(-1, 1, len(ids)).unsqueeze(-1)).mean().backward()
            return ids.numel()

        def reference(ids: torch.Tensor = ids, learned: torch.Tensor = learned) -> int:
            with torch.no_grad():
                model(input_ids=ids).logits[:, :-1][:, learned].log_softmax(-1)
            return ids.numel()

        for name, work in (("warm start", warm), ("reference", reference), ("update", update)):
            with torch.autocast(ids.device.type, getattr(torch, policy.dtype), enabled=policy.dtype != "float32"):
                rates[f"{name} x{micro}"] = measured(work)

    def step() -> int:
        optimizer.step()
        optimizer.zero_grad()
        return 1

    step()  # the first one makes the moments
    model(input_ids=rows_of(1, 16, words)).logits.mean().backward()
    return {**rates, "optimizer step": measured(step)}


def sampling_rate(policy: Any, rows: int, searches: int, words: int) -> Rate:
    """Sampled tokens of ``rows`` episodes of several turns, their prompts and windows read on the way."""
    rng = np.random.default_rng(0)
    prefixes = [rng.integers(10, words, PROMPT).tolist() for _ in range(rows)]

    def play() -> int:
        sampled = 0
        for turn in range(searches + 1):
            requests = [Request(f"{i}#0", p, TURN, 1000 * turn + i) for i, p in enumerate(prefixes)]
            done = policy.generate(requests, Sampling(1.0))
            sampled += sum(len(one.token_ids) for one in done)
            for prefix, one in zip(prefixes, done, strict=True):
                prefix += [*one.token_ids, *rng.integers(10, words, WINDOW).tolist()]
        policy.release([f"{i}#0" for i in range(rows)])
        return sampled

    return measured(play)


def sample_rates(settings: PolicySettings, rows: int, searches: int) -> dict[str, Rate]:
    model, codec = load_policy_model(settings, settings.model or "")
    words = min(model.config.vocab_size, 40_000)
    own = TransformersPolicy(model, codec, max_rows=rows)
    rates = {"sampling transformers": sampling_rate(own, rows, searches, words)}
    if find_spec("vllm") is None:
        print("vLLM is not installed: its sampling is not measured")
        return rates
    from agent.policies.vllm_policy import open_vllm_policy

    engine, _ = open_vllm_policy(settings, settings.model or "")
    sampling_rate(engine, 1, 0, words)  # the first call warms up
    return {**rates, "sampling vllm": sampling_rate(engine, rows, searches, words)}


def show(rates: dict[str, Rate]) -> None:
    print(f"\n{'':32}{'tokens/s':>10}{'tokens/CPU s':>14}{'seconds':>9}")
    for name, rate in rates.items():
        if name.endswith("optimizer step"):
            print(f"{name:32}{'':>10}{'':>14}{rate.wall:>9.1f}  ({rate.cpu:.1f} CPU)")
        else:
            print(f"{name:32}{rate.by_wall:>10.1f}{rate.by_cpu:>14.1f}{rate.wall:>9.1f}")


def best(rates: dict[str, Rate], stage: str, micro: int | None) -> Rate:
    """The rate of ``stage`` at ``micro`` rows where that was measured, else the fastest."""
    fitting = {name: rate for name, rate in rates.items() if name.startswith(stage)}
    exact = fitting.get(f"{stage} x{micro}")
    return exact or max(fitting.values(), key=lambda rate: rate.by_cpu)


def seconds_of(
    plan: RunSettings, rates: dict[str, Rate], shape: Shape, demonstrations: int
) -> dict[str, tuple[float, float]]:
    """(wall, CPU) seconds of each stage of ``plan``; evaluations after the stages are not in it."""

    def time_for(tokens: float, rate: Rate) -> tuple[float, float]:
        return tokens / rate.by_wall, tokens / rate.by_cpu

    found: dict[str, tuple[float, float]] = {}
    warm = plan.warmstart
    if warm is not None:
        kind = "lora" if warm.lora else "full"
        played = plan.demonstrations.limit if plan.demonstrations else None
        steps = warm.steps or max(round(warm.epochs * (played or demonstrations) / warm.batch_size), 1)
        once = rates[f"{kind} optimizer step"]
        wall, cpu = time_for(steps * warm.batch_size * shape.whole, best(rates, f"{kind} warm start", warm.micro_batch))
        found[f"warm start, {steps} steps of {warm.batch_size}"] = wall + steps * once.wall, cpu + steps * once.cpu
    grpo = plan.grpo
    if grpo is not None:
        kind, rows = "lora" if grpo.lora else "full", grpo.rollouts * grpo.questions * grpo.group_size
        samplers = {name: rate for name, rate in rates.items() if name.startswith("sampling")}
        for name, rate in samplers.items():
            found[f"{name}, {rows} rows"] = time_for(rows * shape.sampled, rate)
        forwards = int(grpo.beta > 0) + int(grpo.updates_per_rollout > 1)
        if forwards:
            found["reference and old log-probs"] = time_for(
                forwards * rows * shape.whole, best(rates, f"{kind} reference", grpo.micro_batch)
            )
        wall, cpu = time_for(grpo.iterations * rows * shape.whole, best(rates, f"{kind} update", grpo.micro_batch))
        once = rates[f"{kind} optimizer step"]
        found[f"update, {grpo.steps} steps"] = wall + grpo.steps * once.wall, cpu + grpo.steps * once.cpu
        evaluations = -(-grpo.steps // grpo.eval_steps) + 1
        if grpo.eval_limit:
            fastest = max(samplers.values(), key=lambda rate: rate.by_cpu)
            found[f"dev, {evaluations} x {grpo.eval_limit}"] = time_for(
                evaluations * grpo.eval_limit * shape.sampled, fastest
            )
    return found


def show_plan(found: dict[str, tuple[float, float]], shape: Shape) -> None:
    print(f"\na row: {shape.whole:.0f} tokens, {shape.sampled:.0f} of them sampled")
    print(f"{'':32}{'hours':>8}{'CPU hours':>11}")
    for name, (wall, cpu) in found.items():
        print(f"{name:32}{wall / 3600:>8.2f}{cpu / 3600:>11.2f}")


def measure(options: argparse.Namespace) -> dict[str, Rate]:
    dtype: Any = options.dtype
    settings = PolicySettings(
        model=options.model, dtype=dtype, max_rows=options.rows, vllm=VllmSettings(block_size=32, max_tokens=1024)
    )
    length = round(Shape(options.searches).whole)
    rates = sample_rates(settings, options.rows, round(options.searches))
    for kind in options.kinds:
        lora = LoraSettings(r=16, alpha=32) if kind == "lora" else None
        found = train_rates(settings, lora, options.micro, length)
        rates |= {f"{kind} {name}": rate for name, rate in found.items()}
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", help="config of a run, whose stages are worked out")
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], help="key=value of the plan")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--kinds", nargs="*", choices=("full", "lora"), default=["full", "lora"])
    parser.add_argument("--micro", type=int, nargs="+", default=[1, 4], help="rows of a micro-batch")
    parser.add_argument("--rows", type=int, default=8, help="episodes sampled together")
    parser.add_argument("--searches", type=float, default=1.0, help="searches of an episode")
    parser.add_argument(
        "--demonstrations",
        type=int,
        default=4000,
        help="of a warm start that goes by epochs, where the plan has no limit",
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rates", type=Path, help="keeps what was measured, and is read where it exists")
    options = parser.parse_args()
    try:  # before minutes of measuring
        plan = load_run_settings(options.plan, options.overrides) if options.plan else None
    except SleuthError as error:
        parser.error(str(error))
    use_threads(options.threads, None, 4096)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs, {torch.get_num_threads()} threads")
    if options.rates and options.rates.exists():
        rates = {name: Rate(**rate) for name, rate in json.loads(options.rates.read_text()).items()}
    else:
        rates = measure(options)
        if options.rates:
            options.rates.write_text(json.dumps({name: asdict(rate) for name, rate in rates.items()}, indent=1))
    show(rates)
    if plan:
        shape = Shape(options.searches)
        show_plan(seconds_of(plan, rates, shape, options.demonstrations), shape)
    print(f"\nload {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
