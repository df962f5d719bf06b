"""The policy on vLLM: token ids in and out, prefixes cached across turns, new weights checked before use."""

from __future__ import annotations

import functools
import itertools
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.config import PolicySettings
from agent.policies.adapters import merged, read_adapter, write_adapter
from agent.policies.loading import (
    POLICY,
    adapter_base,
    load_codec,
    load_policy_model,
    pick_device,
    resolve_model,
)
from agent.policies.probe import ROUNDING
from agent.policies.vllm_background import BackgroundEngine
from agent.policies.vllm_engine import Adapter, Engine, EngineOptions, InProcessEngine, memory_folder
from hub.adapters import adapter_rank
from hub.config import LoraSettings
from sleuth.errors import PolicyError
from sleuth.protocols import OnToken, Weights
from sleuth.types import Generation, Probe, Request, Sampling

if TYPE_CHECKING:
    import torch

    from agent.codec import HFCodec

Merge = Callable[[Mapping[str, "torch.Tensor"], Mapping[str, Any]], Mapping[str, "torch.Tensor"]]
"""Whole weights of an adapter's tensors and settings."""


class VllmPolicy:
    """Samples with a vLLM engine; ``version`` is that of the last weights loaded and verified.

    ``load`` replaces the weights between generations: all of them in place, or the previous adapter by a new one,
    which ``merge`` turns into whole weights if there is one. They are verified on a probe before their version is
    published; after a failed check nothing can be sampled until one succeeds. ``sleeps``: it frees the GPU's memory
    while idle.
    """

    trainable = True

    def __init__(
        self,
        engine: Engine,
        *,
        max_gap: float,
        adapter: str | None = None,
        merge: Merge | None = None,
        sleeps: bool = False,
    ) -> None:
        self.engine = engine
        self._merge = merge
        self.context: int | None = engine.context
        self._max_gap = max_gap
        self._sleeps = sleeps
        self._asleep = False
        self._numbers = itertools.count(1)
        self._adapter = Adapter(next(self._numbers), adapter) if adapter else None
        self._version = 0
        self._sound = True
        self._adapters = tempfile.TemporaryDirectory(prefix="sleuth-adapters-", dir=memory_folder())
        self._closing = weakref.finalize(self, _close, engine, self._adapters)

    @property
    def version(self) -> int:
        return self._version

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, on_token: OnToken | None = None
    ) -> list[Generation]:
        self._get_ready()
        version = self._version
        done = self.engine.sample(requests, sampling, self._adapter, on_token)
        return [Generation(s.token_ids, s.logprobs, s.finish_reason, version) for s in done]

    def release(self, episodes: Iterable[str]) -> None:
        """Nothing to release: the prefix cache matches a prefix by its tokens."""

    def load(self, weights: Weights) -> None:
        """A whole model replaces any adapter.

        Raises PolicyError if the engine's log-probs of the probe differ from the trainer's or, before any change, if
        vLLM does not support such an adapter.
        """
        self._wake()
        state, known, adapter = weights.tensors(), weights.adapter, None
        if known is not None and self._merge is not None:
            state = self._merge(state, known)
        elif known is not None:
            adapter = self._written(state, known)
        self._sound = False
        if adapter is None:
            self.engine.load(with_head(state))
        self._swap(adapter)
        probe = weights.probe()
        if probe is not None:
            self._check(weights.version, probe)
        self._version = weights.version
        self._sound = True

    def gap(self, probe: Probe) -> float:
        """The largest difference, in nats, between the engine's log-probs and the probe's."""
        self._wake()
        (own,) = self.engine.prompt_logprobs([probe.token_ids], self._adapter)
        return max(abs(a - b) for a, b in zip(own, probe.logprobs, strict=True))

    def text_logprobs(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Of each text the log-prob of every token but the first, in nats, at temperature 1."""
        self._get_ready()
        return self.engine.prompt_logprobs(texts, self._adapter)

    def rest(self) -> None:
        """Free the GPU's memory until it is needed again, if ``sleeps``."""
        if self._sleeps and not self._asleep:
            self.engine.sleep()
            self._asleep = True

    def close(self) -> None:
        """Stop the engine and free its memory."""
        self._closing()

    def _written(self, state: Mapping[str, torch.Tensor], known: Mapping[str, Any]) -> Adapter:
        """A new number for every version: the engine and its prefix cache distinguish adapters by it."""
        number = next(self._numbers)
        folder = Path(self._adapters.name) / str(number)
        write_adapter(folder, state, known)
        return Adapter(number, str(folder))

    def _swap(self, adapter: Adapter | None) -> None:
        old, self._adapter = self._adapter, adapter
        if old:
            self.engine.forget(old)
            shutil.rmtree(Path(self._adapters.name) / str(old.number), ignore_errors=True)

    def _check(self, version: int, probe: Probe) -> None:
        gap = self.gap(probe)
        if not gap <= self._max_gap:
            raise PolicyError(
                f"after the update to version {version} vllm's log-probs differ from the trainer's by {gap:.3g} nats"
                f" ({self._max_gap:g} is allowed)",
                "the version is not used; policy.vllm.max_gap sets the bound",
            )

    def _wake(self) -> None:
        if self._asleep:
            self.engine.wake()
            self._asleep = False

    def _get_ready(self) -> None:
        self._wake()
        if not self._sound:
            raise PolicyError("vllm holds weights that failed their check", "push a version that passes first")


class AsyncVllmPolicy(VllmPolicy):
    """The same, on the engine whose requests advance independently."""

    engine: BackgroundEngine

    async def generate_one(self, request: Request, sampling: Sampling, on_token: OnToken | None = None) -> Generation:
        self._get_ready()
        version = self._version
        done = await self.engine.sample_one(request, sampling, self._adapter, on_token)
        return Generation(done.token_ids, done.logprobs, done.finish_reason, version)


def open_vllm_policy(
    settings: PolicySettings, name: str, lora: LoraSettings | None = None
) -> tuple[VllmPolicy, HFCodec]:
    """The policy at ``name`` (as for transformers) on a vLLM engine, prepared for adapters like ``lora``.

    Raises PolicyError if vLLM cannot serve it, MissingExtraError if it is not installed.
    """
    source = resolve_model(name)
    codec = load_codec(source, trust_remote_code=settings.trust_remote_code)
    base = adapter_base(source)
    model = resolve_model(base) if base else source
    own, device = settings.vllm, pick_device(settings.device)
    merging = own.merge_adapters if own.merge_adapters is not None else device == "cpu"
    options = EngineOptions(
        model=model,
        dtype=settings.dtype,
        end_token_ids=codec.end_token_ids,
        max_rows=settings.max_rows,
        max_tokens=own.max_tokens,
        block_size=own.block_size,
        cache_gib=own.cache_gib,
        gpu_share=own.gpu_share,
        eager=own.eager,
        tensor_parallel=own.tensor_parallel,
        sleep=own.sleep,
        trust_remote_code=settings.trust_remote_code,
        device=device,
        full_logprobs=own.full_logprobs,
        lora_rank=0 if merging else max(lora.r if lora else 0, adapter_rank(source, POLICY) if base else 0),
    )
    kind: Any = AsyncVllmPolicy if own.asynchronous else VllmPolicy
    engine = BackgroundEngine(options) if own.asynchronous else InProcessEngine(options)
    merge = _merge_into(settings, model) if merging else None
    if base and merge:
        engine.load(with_head(merge(*read_adapter(Path(source)))))
    adapter = source if base and not merging else None
    gap = own.max_gap or ROUNDING[settings.dtype]
    return kind(engine, max_gap=gap, adapter=adapter, merge=merge, sleeps=own.sleep), codec


def _merge_into(settings: PolicySettings, model: str) -> Merge:
    """Adds adapters to ``model``, which is read when the first one comes."""

    @functools.cache
    def base() -> Mapping[str, torch.Tensor]:
        found, _ = load_policy_model(settings.model_copy(update={"device": "cpu"}), model)
        state: Mapping[str, torch.Tensor] = found.state_dict()
        return state

    return lambda state, known: merged(base(), state, known)


def _close(engine: Engine, adapters: tempfile.TemporaryDirectory[str]) -> None:
    engine.close()
    adapters.cleanup()


def with_head(state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """``state`` including the output head: a CPU engine silently keeps an old tied head that is not sent."""
    if "lm_head.weight" in state:
        return state
    embeddings = [value for name, value in state.items() if name.endswith("embed_tokens.weight")]
    return {**state, "lm_head.weight": embeddings[0]} if embeddings else state
