"""Which backend a policy runs on, and how each is opened for evaluation and chat."""

from __future__ import annotations

import logging
from collections.abc import Callable

from agent.codec import HFCodec
from agent.config import PolicySettings
from agent.policies.loading import adapter_base, load_codec, resolve_model
from sleuth.errors import ConfigError, PolicyError, did_you_mean
from sleuth.protocols import Policy

log = logging.getLogger("sleuth.policy")


def open_policy(settings: PolicySettings) -> tuple[Policy, HFCodec]:
    """The policy that ``settings`` name with its codec. Raises PolicyError or ConfigError with the way to mend it."""
    if settings.model and settings.model.startswith(("http://", "https://")):
        settings = _server(settings)
    if settings.model is None and settings.backend != "openai":
        raise ConfigError("a tiny policy has no weights before its run made them", "name its folder as policy.model")
    backend = choose_backend(settings, settings.model or "")
    if ":" in backend:
        return _outside(settings)
    return _OPENERS[backend](settings)


def choose_backend(settings: PolicySettings, model: str) -> str:
    """``policy.backend``, with ``auto`` decided and said: vLLM where it is installed and can serve ``model``."""
    if settings.backend == "auto":
        from agent.policies.vllm_engine import why_unusable

        source = resolve_model(model)
        base = adapter_base(source)
        reason = why_unusable(resolve_model(base) if base else source)
        log.warning("policy.backend auto takes %s", f"transformers: {reason}" if reason else "vllm")
        return "transformers" if reason else "vllm"
    if ":" not in settings.backend and settings.backend not in _OPENERS:
        choices = ["auto", *_OPENERS]
        raise ConfigError(f"no policy backend '{settings.backend}'", did_you_mean(settings.backend, choices))
    return settings.backend


def _transformers(settings: PolicySettings) -> tuple[Policy, HFCodec]:
    from agent.policies.loading import load_policy_model
    from agent.policies.transformers_policy import TransformersPolicy

    model, codec = load_policy_model(settings, settings.model or "")
    return TransformersPolicy(model, codec, max_rows=settings.max_rows, keep_cache=settings.keep_cache), codec


def _vllm(settings: PolicySettings) -> tuple[Policy, HFCodec]:
    from agent.policies.vllm_policy import open_vllm_policy

    return open_vllm_policy(settings, settings.model or "")


def _openai(settings: PolicySettings) -> tuple[Policy, HFCodec]:
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
    """Settings whose model is a URL, as those of the server there with whatever single model it serves."""
    there = settings.openai.model_copy(update={"base_url": str(settings.model).rstrip("/")})
    return settings.model_copy(update={"backend": "openai", "model": None, "openai": there})


def _outside(settings: PolicySettings) -> tuple[Policy, HFCodec]:
    from sleuth.plugins import load_object

    assert settings.model is not None
    codec = load_codec(settings.model, trust_remote_code=settings.trust_remote_code)
    policy: Policy = load_object(settings.backend)(settings, codec)
    return policy, codec


_OPENERS: dict[str, Callable[[PolicySettings], tuple[Policy, HFCodec]]] = {
    "transformers": _transformers,
    "vllm": _vllm,
    "openai": _openai,
}
