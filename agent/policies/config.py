"""Settings specific to policy backends: vLLM's engine and OpenAI-compatible servers. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sleuth.settings import Address, Count, Settings


class VllmSettings(Settings):
    """vLLM's engine.

    ``asynchronous`` runs it in its own process, where episodes advance independently: finished rows search while
    others decode. ``cache_gib`` is the size of the key-value cache on a CPU, ``gpu_share`` the fraction of a GPU's
    memory to use. ``max_tokens`` is the longest transcript, by default the model's limit.
    ``sleep`` frees the GPU's memory while the trainer works. ``max_gap`` bounds how far, in nats, the
    engine's log-probs of a probe text may be from the trainer's after an update; by default it follows the dtype.
    ``merge_adapters`` adds an adapter to the weights that the engine holds instead of serving it beside them; by
    default on a CPU, where serving one took three quarters of the time of sampling.
    ``full_logprobs`` reports log-probs of the whole distribution at temperature 1 instead of the one sampled from;
    training with ``grpo.top_p`` below 1 sets it.
    """

    asynchronous: bool = False
    cache_gib: Annotated[float, Field(gt=0.0)] = 1.0
    gpu_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4
    max_tokens: Count | None = None
    block_size: Literal[16, 32, 64, 128] | None = None
    eager: bool = True
    tensor_parallel: Count = 1
    sleep: bool = False
    max_gap: Annotated[float, Field(gt=0.0)] | None = None
    merge_adapters: bool | None = None
    full_logprobs: bool = False


class OpenAISettings(Settings):
    """A server that speaks OpenAI's completions.

    ``key_variable`` names the environment variable with the key; if it is not set, no key is sent.
    ``tokenizer`` is a folder or hub name, by default the policy's ``model``. ``tokens`` says whether the server
    accepts and returns token ids; ``auto`` asks it.
    """

    base_url: Address = "http://127.0.0.1:8000/v1"
    key_variable: str = "OPENAI_API_KEY"
    tokenizer: str | None = None
    tokens: Literal["auto", "always", "never"] = "auto"
    timeout_s: Annotated[float, Field(gt=0.0)] = 120.0
    retries: Annotated[int, Field(ge=0)] = 3
    concurrency: Count = 16
