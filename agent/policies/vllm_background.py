"""vLLM's asynchronous engine in its own process: requests advance independently, weights pass through a folder."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agent.policies.vllm_engine import (
    Adapter,
    EngineOptions,
    Parts,
    Sampled,
    engine_arguments,
    lora_request_of,
    memory_folder,
    must_reset,
    of_prompt,
    parameters,
    prepare,
    probe_parameters,
    refusals,
    starting,
)
from sleuth.protocols import OnToken
from sleuth.types import Request, Sampling

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class BackgroundEngine:
    """AsyncLLM in its own process, its event loop in a thread: usable from any thread and any loop."""

    def __init__(self, options: EngineOptions) -> None:
        prepare()
        self._options = options
        self._serial = itertools.count()
        self._folder = Path(tempfile.mkdtemp(prefix="sleuth-weights-", dir=memory_folder()))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        with starting(options):
            self._engine = self._call(self._open())

    def sample(
        self, requests: Sequence[Request], sampling: Sampling, adapter: Adapter | None, on_token: OnToken | None
    ) -> list[Sampled]:
        async def together() -> list[Sampled]:
            return await asyncio.gather(*(self._sample(r, sampling, adapter, on_token) for r in requests))

        return self._call(together())

    async def sample_one(
        self, request: Request, sampling: Sampling, adapter: Adapter | None, on_token: OnToken | None
    ) -> Sampled:
        """From any event loop; cancelling it ends the request."""
        work = self._sample(request, sampling, adapter, on_token)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def prompt_logprobs(self, texts: Sequence[Sequence[int]], adapter: Adapter | None) -> list[list[float]]:
        async def last(token_ids: Sequence[int]) -> Any:
            return [output async for output in self._outputs(token_ids, probe_parameters(), adapter)][-1]

        async def together() -> list[Any]:
            with refusals():
                return await asyncio.gather(*map(last, texts))

        return [of_prompt(output) for output in self._call(together())]

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Through a folder in memory: AsyncLLM accepts no tensors from another process."""
        from safetensors.torch import save_file

        save_file(
            {name: value.contiguous().clone() for name, value in state.items()}, self._folder / "model.safetensors"
        )
        self._call(self._load())

    def forget(self, adapter: Adapter) -> None:
        self._call(self._engine.remove_lora(adapter.number))

    def sleep(self) -> None:
        must_reset(self._call(self._engine.reset_prefix_cache()))
        self._call(self._engine.sleep(1))

    def wake(self) -> None:
        self._call(self._engine.wake_up())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._engine.shutdown)
        self._call(asyncio.sleep(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def context(self) -> int:
        return int(self._engine.model_config.max_model_len)

    async def _open(self) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        return AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(self._options)))

    async def _load(self) -> None:
        await self._engine.pause_generation(mode="wait")
        try:
            await self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(self._folder)})
            must_reset(await self._engine.reset_prefix_cache())
        finally:
            await self._engine.resume_generation()

    async def _sample(
        self, request: Request, sampling: Sampling, adapter: Adapter | None, on_token: OnToken | None
    ) -> Sampled:
        part = Parts(request.episode, sampling.stop, on_token)
        with refusals():
            wanted = parameters(self._options, request, sampling, on_token)
            async for output in self._outputs(request.prefix, wanted, adapter):
                part.take(output)
        return part.whole()

    def _outputs(self, token_ids: Sequence[int], wanted: Any, adapter: Adapter | None) -> AsyncIterator[Any]:
        prompt = {"prompt_token_ids": list(token_ids)}
        name = f"{next(self._serial)}"
        outputs: AsyncIterator[Any] = self._engine.generate(prompt, wanted, name, lora_request=lora_request_of(adapter))
        return outputs

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work`` on the engine's loop; an interrupt cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
