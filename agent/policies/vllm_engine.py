"""vLLM behind one small interface, and its engine in this process: weights are replaced in place.

vLLM is imported here and in ``vllm_background.py`` only, and inside functions: its import takes seconds.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agent.policies.neutral import NEUTRAL
from hub.reach import hub_or_cache
from sleuth.errors import MissingExtraError, PolicyError, first_line
from sleuth.protocols import OnToken
from sleuth.types import FinishReason, Request, Sampling

if TYPE_CHECKING:
    import torch

_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine is built from. ``lora_rank`` 0: no adapters. ``full_logprobs``: before temperature and top-p."""

    model: str
    dtype: str
    end_token_ids: tuple[int, ...]
    max_rows: int
    max_tokens: int | None
    block_size: int | None
    cache_gib: float
    gpu_share: float
    eager: bool
    tensor_parallel: int
    sleep: bool
    trust_remote_code: bool
    device: str
    lora_rank: int = 0
    full_logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter's folder, with a number unique within the engine's life."""

    number: int
    folder: str


@dataclass(frozen=True, slots=True)
class Sampled:
    """An engine's output for one request."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


class Engine(Protocol):
    """Samples, and can load weights. ``load`` and ``forget`` wait until nothing is being sampled."""

    def sample(
        self, requests: Sequence[Request], sampling: Sampling, adapter: Adapter | None, on_token: OnToken | None
    ) -> list[Sampled]: ...

    def prompt_logprobs(self, texts: Sequence[Sequence[int]], adapter: Adapter | None) -> list[list[float]]:
        """Of each text the log-prob of every token but the first, in nats, at temperature 1."""
        ...

    def load(self, state: Mapping[str, torch.Tensor]) -> None: ...

    def forget(self, adapter: Adapter) -> None: ...

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...

    @property
    def context(self) -> int:
        """The most tokens of a prompt with its generation."""
        ...


def why_unusable(model: str, *, trust_remote_code: bool = False) -> str | None:
    """Why vLLM cannot serve ``model`` here; None if no obstacle is known."""
    if importlib.util.find_spec("vllm") is None:
        return "vllm is not installed"
    prepare()
    try:
        from vllm.platforms import current_platform

        if not current_platform.is_cpu():
            return None
        from transformers import AutoConfig
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        with hub_or_cache(model):
            config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code).get_text_config()
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        sizes = CPUAttentionBackend.get_supported_head_sizes()
    except Exception as error:  # noqa: BLE001 - a broken installation raises anything
        return f"vllm does not import: {first_line(error)}"
    if size not in sizes:
        return f"vllm does not support attention heads of size {size} on a CPU, only {sizes}"
    return None


class InProcessEngine:
    """vLLM's engine, stepped by the caller that samples."""

    def __init__(self, options: EngineOptions) -> None:
        prepare()
        with starting(options):
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            self._engine = LLMEngine.from_engine_args(EngineArgs(**engine_arguments(options)))
        self._options = options
        self._serial = itertools.count()

    def sample(
        self, requests: Sequence[Request], sampling: Sampling, adapter: Adapter | None, on_token: OnToken | None
    ) -> list[Sampled]:
        parts = {f"{next(self._serial)}": Parts(request.episode, sampling.stop, on_token) for request in requests}
        try:
            with refusals():
                for name, request in zip(parts, requests, strict=True):
                    wanted = parameters(self._options, request, sampling, on_token)
                    self._add(name, request.prefix, wanted, adapter)
            while self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    parts[output.request_id].take(output)
        except BaseException:
            self._abort()
            raise
        return [part.whole() for part in parts.values()]

    def prompt_logprobs(self, texts: Sequence[Sequence[int]], adapter: Adapter | None) -> list[list[float]]:
        names = {f"{next(self._serial)}": token_ids for token_ids in texts}
        found: dict[str, list[float]] = {}
        try:
            with refusals():
                for name, token_ids in names.items():
                    self._add(name, token_ids, probe_parameters(), adapter)
            while self._engine.has_unfinished_requests():
                found |= {output.request_id: of_prompt(output) for output in self._engine.step() if output.finished}
        except BaseException:
            self._abort()
            raise
        return [found[name] for name in names]

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(list(state.items()))})
        must_reset(self._engine.reset_prefix_cache())

    def forget(self, adapter: Adapter) -> None:
        self._engine.remove_lora(adapter.number)

    def sleep(self) -> None:
        must_reset(self._engine.reset_prefix_cache())
        self._engine.sleep(1)

    def wake(self) -> None:
        self._engine.wake_up()

    def close(self) -> None:
        self._engine.engine_core.shutdown()
        del self._engine

    @property
    def context(self) -> int:
        return int(self._engine.model_config.max_model_len)

    def _add(self, name: str, token_ids: Sequence[int], wanted: Any, adapter: Adapter | None) -> None:
        prompt = {"prompt_token_ids": list(token_ids)}
        self._engine.add_request(name, prompt, wanted, lora_request=lora_request_of(adapter))

    def _abort(self) -> None:
        """Leave no request running after an interrupt."""
        running = list(self._engine.output_processor.request_states)
        self._engine.abort_request(running, internal=True)


class Parts:
    """Assembles the outputs of one request. It keeps whole tokens: a stop string may end inside the last one."""

    def __init__(self, episode: str, stop: Sequence[str], on_token: OnToken | None) -> None:
        self._episode, self._stop, self._on_token = episode, stop, on_token
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._end: FinishReason | None = None

    def take(self, output: Any) -> None:
        piece = output.outputs[0]
        values = [step[token].logprob for token, step in zip(piece.token_ids, piece.logprobs or (), strict=True)]
        self._ids += piece.token_ids
        self._logprobs += values
        for token, value in zip(piece.token_ids, values, strict=True) if self._on_token else ():
            self._on_token(self._episode, token, value)  # type: ignore[misc]
        if piece.finish_reason == "stop":
            self._end = "stop" if piece.stop_reason in self._stop else "eos"
        elif piece.finish_reason == "length":
            self._end = "length"
        elif piece.finish_reason is not None:
            raise PolicyError(f"vllm ended a request with '{piece.finish_reason}'", "see its log above")

    def whole(self) -> Sampled:
        if self._end is None:
            raise PolicyError("vllm gave no end of a request", "see its log above")
        return Sampled(tuple(self._ids), tuple(self._logprobs), self._end)


def engine_arguments(options: EngineOptions) -> dict[str, Any]:
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    arguments: dict[str, Any] = {
        "model": options.model,
        "dtype": options.dtype,  # "auto" would turn an fp32 checkpoint into 16 bits
        "seed": 0,
        "enforce_eager": options.eager,
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # no sampling defaults of the model's own; its end tokens still count
        "logprobs_mode": "raw_logprobs" if options.full_logprobs else "processed_logprobs",
        "max_num_seqs": options.max_rows,
        "max_model_len": options.max_tokens,
        "tensor_parallel_size": options.tensor_parallel,
        "trust_remote_code": options.trust_remote_code,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if options.block_size:
        arguments["block_size"] = options.block_size
    if on_cpu:
        # A prompt read in chunks rewinds its request's generator, which is impossible on a CPU.
        arguments |= {"kv_cache_memory_bytes": int(options.cache_gib * 2**30), "enable_chunked_prefill": False}
    else:
        arguments |= {"gpu_memory_utilization": options.gpu_share, "enable_sleep_mode": options.sleep}
    if options.lora_rank:
        rank = next((r for r in _LORA_RANKS if r >= options.lora_rank), options.lora_rank)
        arguments |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1}
    return arguments


@contextmanager
def refusals() -> Iterator[None]:
    """vLLM's error, for a rejected request or a dead engine, in one line."""
    from vllm.exceptions import VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    try:
        yield
    except (ValueError, VLLMClientError) as error:
        raise PolicyError(f"vllm refuses a request: {first_line(error)}", "see policy.vllm.max_tokens") from error
    except (EngineDeadError, EngineGenerateError) as error:
        raise PolicyError(f"vllm's engine stopped: {first_line(error)}", "see its log above; start it anew") from error


def parameters(options: EngineOptions, request: Request, sampling: Sampling, on_token: OnToken | None) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    if sampling.full_logprobs and sampling.top_p < 1.0 and not (options.full_logprobs and sampling.temperature == 1.0):
        raise PolicyError(
            "this vllm engine does not report log-probs of the whole distribution",
            "sample at temperature 1 with policy.vllm.full_logprobs set to true",
        )
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        **NEUTRAL,
        max_tokens=request.max_new_tokens,
        seed=request.seed,
        stop=list(sampling.stop),
        stop_token_ids=list(options.end_token_ids),
        logprobs=0,
        structured_outputs=None if request.schema is None else _held_to(request.schema),
        skip_special_tokens=False,  # a stop string may be a special token, and what is skipped is not looked for
        spaces_between_special_tokens=False,
        output_kind=RequestOutputKind.DELTA if on_token else RequestOutputKind.FINAL_ONLY,
    )


def _held_to(schema: str) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(json=schema)


def probe_parameters() -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=1.0, max_tokens=1, prompt_logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY, detokenize=False
    )


def of_prompt(output: Any) -> list[float]:
    pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    return [step[token].logprob for token, step in pairs]


def lora_request_of(adapter: Adapter | None) -> Any:
    if adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest(f"version-{adapter.number}", adapter.number, adapter.folder)


def must_reset(done: bool) -> None:
    if not done:
        raise PolicyError(
            "vllm did not reset its prefix cache after an update of the weights",
            "requests were still running during an update",
        )


def prepare() -> None:
    """Set environment variables of vLLM that the user has not set."""
    # The engine runs in this process; AsyncLLM has its own process in any case, and needs none for its worker.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    for name, value in {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding starves the trainer, and is slow on a busy machine
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }.items():
        os.environ.setdefault(name, value)


@contextmanager
def starting(options: EngineOptions) -> Iterator[None]:
    """Turn errors of an engine's start into one line; keep torch's thread setting usable afterwards."""
    import torch

    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError("vllm", "vllm", "policy.backend 'vllm'")
    setter, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    except Exception as error:
        message = f"vllm cannot serve {options.model}: {first_line(error)}"
        raise PolicyError(message, "policy.backend: transformers runs it") from error
    finally:
        torch.set_num_threads = setter  # CPU vLLM replaces it by a no-op
        torch.set_num_threads(threads)


def memory_folder() -> str | None:
    """A folder whose files are in memory; None if there is none."""
    shared = Path("/dev/shm")
    return str(shared) if os.access(shared, os.W_OK) else None
