"""How far the sampler's log-probs are from the trainer's in 16 bits, and whether new weights reach an engine.

Rows of two turns are sampled, with inserted tokens between them; the trainer then reads each whole row. ``signed`` is
the mean of trainer less sampler, in nats a token; ``outside`` the share of tokens whose ratio is further than 0.2 from
1, which a clipped loss would not learn from. All of it would be 0 in exact arithmetic.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from agent.config import PolicySettings
from agent.policies.backends import open_trainable
from agent.policies.loading import load_policy_model
from agent.policies.probe import probe_tokens
from agent.policies.weights import LiveWeights
from benchmarks.engine_agreement import LORA, Transcript, differences, play, step
from benchmarks.gpu.context import Context, Figures
from sleuth.errors import ConfigError, PolicyError
from workflows.logs import quiet_libraries
from workflows.wiring import read_questions

TRAINERS = {"float32": ("float32", False), "autocast": ("float32", True), "bfloat16": ("bfloat16", False)}
"""How a trainer reads: the dtype of its weights, and whether autocast is on. In 16 bits all weights are trained as the
second, an adapter over frozen ones as the third."""
MOVE = 1e-2
"""How far each number of an adapter is moved: enough to be told from the rounding of 16 bits."""
ABSENT = {"left_out": "vllm is not installed here"}


class Bench:
    """The policy carried, the prompts, and how many rows and tokens are sampled."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.policy = context.settings().policy
        self.rows, self.tokens = (4, 8) if context.small else (64, 64)

    def of(self, backend: str, dtype: str, **vllm: Any) -> PolicySettings:
        own = self.policy.vllm.model_copy(update=vllm)
        changes = {"backend": backend, "dtype": dtype, "vllm": own, "max_rows": self.rows}
        return self.policy.model_copy(update=changes)

    def sampled(self, policy: Any, codec: Any, seed: int) -> list[Transcript]:
        questions = read_questions(self.context.settings().data.dev or "", self.rows)
        prompts = [codec.encode(f"Question: {question.text}\n") for question in questions]
        rows = play(policy, prompts, self.tokens, seed, words=min(len(codec.tokenizer), 20_000))
        policy.release([f"{i}#0" for i in range(len(rows))])
        return rows

    def trainer(self, name: str) -> tuple[Any, Any]:
        """A model that reads as the trainer ``name`` does, and the context in which it does."""
        dtype, cast = TRAINERS[name]
        model, _ = load_policy_model(self.of("transformers", dtype), self.policy.model or "")
        kind = "cuda" if self.context.on_gpu else "cpu"
        return model, torch.autocast(kind, torch.bfloat16, enabled=cast)


def measure(context: Context) -> dict[str, Any]:
    quiet_libraries()
    if context.settings().data.dev is None:
        raise ConfigError("the config has no data.dev, whose questions are the prompts", "carry one that has")
    bench = Bench(context)
    do = context.parts.do
    do("nccl", lambda: _collectives(bench))  # before an engine makes a group of its own
    do("sampler transformers float32", lambda: _against_trainers(bench, "transformers", "float32"))
    do("sampler transformers bfloat16", lambda: _against_trainers(bench, "transformers", "bfloat16"))
    do("adapter transformers", lambda: _adapter(bench, "transformers"))
    do("sampler vllm bfloat16", lambda: _against_trainers(bench, "vllm", "bfloat16"))
    do("adapter vllm", lambda: _adapter(bench, "vllm"))
    do("sleep", lambda: _sleep(bench))
    return context.parts.all()


def _against_trainers(bench: Bench, backend: str, dtype: str) -> Figures:
    if _absent(backend):
        return ABSENT
    with _opened(bench, bench.of(backend, dtype)) as (policy, codec):
        rows = bench.sampled(policy, codec, 1)
    figures: Figures = {}
    for name in TRAINERS:
        model, cast = bench.trainer(name)
        with cast:
            figures |= {f"{name} {key}": value for key, value in _gaps(differences(model, rows)).items()}
        del model
    return figures


def _adapter(bench: Bench, backend: str) -> Figures:
    """An adapter is moved twice; each time the sampler must follow, so its gap to the weights before is larger."""
    if _absent(backend):
        return ABSENT
    from peft import get_peft_model

    from agent.policies.adapters import peft_config

    name = bench.policy.model or ""
    model = get_peft_model(load_policy_model(bench.of("transformers", "bfloat16"), name)[0], peft_config(LORA))
    old = load_policy_model(bench.of("transformers", "bfloat16"), name)[0]
    figures: Figures = {}
    with _opened(bench, bench.of(backend, "bfloat16"), adapter=True) as (policy, codec):
        for version in (1, 2):
            step([p for n, p in model.named_parameters() if "lora_" in n], MOVE, version)
            started = time.perf_counter()
            policy.load(LiveWeights(version, model, probe_tokens(codec)))
            took = time.perf_counter() - started
            rows = bench.sampled(policy, codec, version)
            gaps = _gaps(differences(model, rows))
            figures[f"version {version} mean"] = gaps["mean"]
            figures[f"version {version} largest"] = gaps["largest"]
            figures[f"version {version} to the base"] = _gaps(differences(old, rows))["mean"]
            figures[f"version {version} load_s"] = took
    return figures


def _collectives(bench: Bench) -> Figures:
    """One rank: the library is there, starts, and moves a model's weights without changing them."""
    from torch import distributed

    context, backend = bench.context, "nccl" if bench.context.on_gpu else "gloo"
    model, _ = load_policy_model(bench.of("transformers", "bfloat16"), bench.policy.model or "")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        distributed.init_process_group(backend, init_method=f"file://{Path(folder) / 'init'}", rank=0, world_size=1)
        try:
            numbers = torch.arange(2**20 if context.small else 2**24, dtype=torch.float32, device=context.device)
            total = numbers.clone()
            distributed.all_reduce(total)
            _wait(context)
            ready = time.perf_counter() - started
            started = time.perf_counter()
            for value in model.state_dict().values():
                distributed.broadcast(value, 0)
            _wait(context)
            moved = time.perf_counter() - started
        finally:
            distributed.destroy_process_group()
    same = bool((total == numbers).all()) and all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    if not same:
        raise PolicyError(f"{backend} changed what it moved between one rank and itself")
    return {"backend": backend, "start_s": ready, "broadcast_s": moved, "tensors": len(before)}


def _sleep(bench: Bench) -> Figures:
    """An engine that sleeps gives its memory back, and says the same after it woke."""
    if _absent("vllm"):
        return ABSENT
    if not bench.context.on_gpu:
        return {"left_out": "vllm ignores sleep on a CPU"}
    with _opened(bench, bench.of("vllm", "bfloat16", sleep=True)) as (policy, codec):
        awake, before = torch.cuda.mem_get_info()[0], bench.sampled(policy, codec, 5)
        policy.rest()
        asleep, started = torch.cuda.mem_get_info()[0], time.perf_counter()
        after = bench.sampled(policy, codec, 5)
        first = time.perf_counter() - started
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a.tokens == b.tokens]
    apart = max((abs(x - y) for a, b in pairs for x, y in zip(a.logprobs, b.logprobs, strict=True)), default=0.0)
    return {
        "freed_gib": (asleep - awake) / 2**30,
        "wake_and_sample_s": first,
        "rows_alike": len(pairs),
        "rows": len(before),
        "largest": apart,
    }


def _gaps(found: torch.Tensor) -> Figures:
    return {
        "mean": found.abs().mean().item(),
        "largest": found.abs().max().item(),
        "signed": found.mean().item(),
        "outside": ((found.exp() - 1).abs() > 0.2).float().mean().item(),
    }


@contextmanager
def _opened(bench: Bench, settings: PolicySettings, *, adapter: bool = False) -> Iterator[tuple[Any, Any]]:
    """A policy of its own weights, which is closed and forgotten afterwards."""
    policy, codec = open_trainable(settings, bench.policy.model or "", LORA if adapter else None)
    try:
        yield policy, codec
    finally:
        if hasattr(policy, "close"):
            policy.close()
        del policy
        gc.collect()
        if bench.context.on_gpu:
            torch.cuda.empty_cache()


def _absent(backend: str) -> bool:
    return backend == "vllm" and find_spec("vllm") is None


def _wait(context: Context) -> None:
    if context.on_gpu:
        torch.cuda.synchronize()
