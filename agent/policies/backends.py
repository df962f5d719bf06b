"""The policy backends, and how each is opened: for evaluation and chat, on workers, and beside the trainer."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent.codec import HFCodec
from agent.config import PolicySettings
from agent.policies.loading import adapter_base, load_codec, resolve_model
from hub.adapters import check_targets
from hub.config import LoraSettings
from sleuth.errors import ConfigError, PolicyError, did_you_mean, first_line
from sleuth.plugins import load_object
from sleuth.protocols import Policy, TrainablePolicy
from sleuth.types import Sampling

log = logging.getLogger("sleuth.policy")
Opened = tuple[Policy, HFCodec]


@dataclass(frozen=True, slots=True)
class Backend:
    """``open`` makes a policy with its own copy of the weights at a name, prepared for an adapter if one is trained.

    ``trains``: its policies are ``TrainablePolicy``. ``around`` makes one that samples with the trained model itself,
    in the trainer's process; None if the backend needs its own copy of the weights there too.
    """

    open: Callable[[PolicySettings, str, LoraSettings | None], Opened]
    trains: bool
    around: Callable[[PolicySettings, Any, HFCodec], TrainablePolicy] | None = None


def open_policy(settings: PolicySettings) -> Opened:
    """The policy described by ``settings``, and its codec. Raises PolicyError or ConfigError with a hint."""
    if settings.model and settings.model.startswith(("http://", "https://")):
        settings = _server(settings)
    if settings.tiny is not None:
        raise ConfigError("a tiny policy has no weights before its run made them", "name its folder as policy.model")
    name = settings.model or ""
    return _backend(choose_backend(settings, name)).open(settings, name, None)


def open_trainable(settings: PolicySettings, name: str, lora: LoraSettings | None) -> tuple[TrainablePolicy, HFCodec]:
    """A policy with its own copy of the weights at ``name``, updated from a trainer whose adapter is ``lora``."""
    policy, codec = _backend(choose_backend(settings, name)).open(settings, name, lora)
    if not isinstance(policy, TrainablePolicy):
        raise _untrainable(settings.backend)
    if not policy.trainable:
        raise ConfigError(
            f"policy.backend '{settings.backend}' says that it cannot be trained (trainable is False)",
            "to be trained, a policy must know the token ids and log-probs that it samples",
        )
    return policy, codec


def policy_around(settings: PolicySettings, name: str, model: Any, codec: HFCodec) -> TrainablePolicy | None:
    """A policy that samples with ``model``, which is trained in this process; None if the backend cannot."""
    around = _backend(choose_backend(settings, name)).around
    return around(settings, model, codec) if around else None


def has_own_engine(backend: str) -> bool:
    """Whether ``backend``, as chosen, computes log-probs in another way than the trainer does."""
    return _backend(backend).around is None


def for_training(settings: PolicySettings, sampling: Sampling) -> PolicySettings:
    """``settings`` of a policy that reports the log-probs which ``sampling`` asks for.

    Raises ConfigError if the backend, as chosen, is known not to have them.
    """
    if not sampling.full_logprobs or settings.backend != "vllm":
        return settings
    if sampling.temperature != 1.0:
        raise ConfigError(
            "vllm reports log-probs of the whole distribution at temperature 1 only",
            "with grpo.top_p below 1, set grpo.temperature to 1 or policy.backend to transformers",
        )
    return settings.model_copy(update={"vllm": settings.vllm.model_copy(update={"full_logprobs": True})})


def check_trainable(settings: PolicySettings) -> None:
    """Raise ConfigError if the backend, judged without opening it, cannot be given new weights."""
    if settings.backend == "auto":  # all that it may choose can
        return
    if ":" not in settings.backend:
        fits = _backend(settings.backend).trains
    else:
        try:
            made = load_object(settings.backend)
        except ConfigError as error:
            raise ConfigError(f"policy.backend: {error.message}", error.hint) from None
        fits = not inspect.isclass(made) or hasattr(made, "load")
    if not fits:
        raise _untrainable(settings.backend)


def choose_backend(settings: PolicySettings, model: str) -> str:
    """``policy.backend``, with ``auto`` resolved and logged: vLLM if it is installed and can serve ``model``."""
    if settings.backend == "auto":
        from agent.policies.vllm_engine import why_unusable

        source = resolve_model(model)
        base = adapter_base(source)
        reason = why_unusable(resolve_model(base) if base else source, trust_remote_code=settings.trust_remote_code)
        log.warning("policy.backend auto takes %s", f"transformers: {reason}" if reason else "vllm")
        return "transformers" if reason else "vllm"
    check_backend(settings.backend)
    return settings.backend


def check_backend(name: str) -> None:
    """Raise ConfigError for a backend that does not exist; what a dotted path leads to is not looked at."""
    if ":" not in name and name not in (choices := ["auto", *BACKENDS]):
        raise ConfigError(f"no policy backend '{name}'", did_you_mean(name, choices))


def _backend(name: str) -> Backend:
    return Backend(_outside, trains=True) if ":" in name else BACKENDS[name]


def _untrainable(backend: str) -> ConfigError:
    known = ", ".join(name for name, one in BACKENDS.items() if one.trains)
    return ConfigError(
        f"training cannot give new weights to policy.backend '{backend}'",
        f"train with backend {known} or auto, or with a custom one that has load(weights)",
    )


def _transformers(settings: PolicySettings, name: str, lora: LoraSettings | None) -> Opened:
    from agent.policies.loading import load_policy_model

    model, codec = load_policy_model(settings, name)
    if lora and not hasattr(model, "peft_config"):
        from peft import get_peft_model

        from agent.policies.adapters import peft_config

        check_targets(model, lora)
        model = get_peft_model(model, peft_config(lora))
    return _around(settings, model, codec), codec


def _around(settings: PolicySettings, model: Any, codec: HFCodec) -> TrainablePolicy:
    from agent.policies.transformers_policy import TransformersPolicy

    return TransformersPolicy(
        model,
        codec,
        max_rows=settings.max_rows,
        keep_cache=settings.keep_cache,
        cache_bytes=settings.cache_bytes,
    )


def _vllm(settings: PolicySettings, name: str, lora: LoraSettings | None) -> Opened:
    from agent.policies.vllm_policy import open_vllm_policy

    return open_vllm_policy(settings, name, lora)


def _openai(settings: PolicySettings, _name: str, _lora: LoraSettings | None) -> Opened:
    from agent.policies.openai_policy import OpenAIPolicy

    tokenizer = settings.openai.tokenizer or settings.model
    if tokenizer is None:
        raise ConfigError("a server's policy needs a tokenizer here too", "set policy.openai.tokenizer to its folder")
    try:
        codec = load_codec(tokenizer, trust_remote_code=settings.trust_remote_code)
    except PolicyError as error:
        hint = f"set policy.openai.tokenizer to a folder that has the tokenizer of {settings.model}"
        raise PolicyError(error.message, hint) from error
    return OpenAIPolicy(settings.openai, codec, settings.model), codec


def _server(settings: PolicySettings) -> PolicySettings:
    """Settings for a server, if ``model`` is its URL; the server must serve a single model."""
    there = settings.openai.model_copy(update={"base_url": str(settings.model).rstrip("/")})
    return settings.model_copy(update={"backend": "openai", "model": None, "openai": there})


def _outside(settings: PolicySettings, name: str, _lora: LoraSettings | None) -> Opened:
    codec = load_codec(name, trust_remote_code=settings.trust_remote_code)
    try:
        policy: Policy = load_object(settings.backend)(settings.model_copy(update={"model": name, "tiny": None}), codec)
    except TypeError as error:
        raise ConfigError(
            f"policy.backend {settings.backend}: {first_line(error)}", "it is called with policy settings and a codec"
        ) from error
    return policy, codec


BACKENDS: dict[str, Backend] = {
    "transformers": Backend(_transformers, trains=True, around=_around),
    "vllm": Backend(_vllm, trains=True),
    "openai": Backend(_openai, trains=False),
}
