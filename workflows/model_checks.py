"""What a model's own files say against a run, read before its first stage and without its weights."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from agent.config import PolicySettings
from envs.config import EnvironmentSettings
from sleuth.errors import ConfigError
from workflows.config import RunSettings

log = logging.getLogger("sleuth.run")
_PLAYING = frozenset({"start", "demonstrate", "warmstart", "grpo"})
"""Stages that play episodes, or learn from them."""


def check_model(settings: RunSettings, reached: Collection[str], *, begun: bool = False) -> None:
    """Raise ConfigError if the model cannot be trained as the settings of the stages in ``reached`` say.

    A run that has ``begun`` with transcripts longer than the model knows, as earlier versions let it, goes on with a
    warning: its budgets cannot change any more.
    """
    learned = any(stage in reached and getattr(settings, stage) for stage in ("warmstart", "grpo"))
    try:
        if not _PLAYING.isdisjoint(reached):
            check_context(settings.policy, settings.environment, learned=learned)
    except ConfigError as error:
        if not begun:
            raise
        log.warning("%s", error.message)
    if "grpo" in reached and settings.grpo and settings.warmstart is None:  # a warm start merges its adapter
        check_second_adapter(settings)


def check_context(policy: PolicySettings, environment: EnvironmentSettings, *, learned: bool = False) -> None:
    """Raise ConfigError if a transcript may be longer than the model knows.

    A trajectory that is ``learned`` from may be given an end token. If the model's configuration cannot be had here,
    a line says so. A server's model is not known; an environment from outside has a budget of its own.
    """
    if policy.backend == "openai" or (policy.model or "").startswith(("http://", "https://")):
        return
    if ":" in environment.kind and "total_tokens" not in environment.model_fields_set:
        return
    context, where = _context(policy)
    wanted = environment.total_tokens + int(learned)
    if context is not None and wanted > context:
        end = ", and a learned trajectory may get an end token" if learned else ""
        raise ConfigError(
            f"{where} has {context} positions, but environment.total_tokens is {environment.total_tokens}{end}",
            f"set environment.total_tokens to {context - int(learned)} or less",
        )


def fit_context(settings: RunSettings) -> RunSettings:
    """``settings`` for playing with a finished policy: a transcript's length that nobody chose is what the model knows.

    Raises ConfigError if a length was chosen that is beyond it.
    """
    environment = settings.environment
    try:
        check_context(settings.policy, environment)
    except ConfigError:
        if "total_tokens" in environment.model_fields_set:
            raise
        context, where = _context(settings.policy)
        assert context is not None
        log.warning("environment.total_tokens is %d: %s has no more positions", context, where)
        parts = {name: min(getattr(environment, name), context - 1) for name in ("turn_tokens", "observation_tokens")}
        shorter = environment.model_copy(update={"total_tokens": context, **parts})
        return settings.model_copy(update={"environment": shorter})
    return settings


def check_second_adapter(settings: RunSettings) -> None:
    """Raise ConfigError if ``grpo.lora`` asks for an adapter where ``policy.model`` is one."""
    from agent.policies.adapters import refuse_second_adapter
    from agent.policies.loading import adapter_base, resolve_model

    name = settings.policy.model
    if name and settings.grpo and settings.grpo.lora and adapter_base(resolve_model(name)):
        refuse_second_adapter(name)


def _context(policy: PolicySettings) -> tuple[int | None, str]:
    """The smallest limit on a transcript, None if none is known, and what sets it."""
    if policy.tiny is not None:
        return policy.tiny.max_length, "policy.tiny.max_length"
    from agent.policies.loading import read_config, resolve_model
    from hub.context import context_length
    from sleuth.errors import PolicyError

    resolve_model(policy.model or "")  # a path that is not there is an error; a name that cannot be looked up is not
    limits = []
    try:
        limits.append((context_length(read_config(policy)), f"policy.model '{policy.model}'"))
    except PolicyError as error:
        if Path(policy.model or "").exists() and ":" not in policy.backend:
            raise
        log.warning("not checked whether a transcript fits the model: %s", error.message)
    if policy.backend == "vllm":
        limits.append((policy.vllm.max_tokens, "policy.vllm.max_tokens"))
    known = [(limit, where) for limit, where in limits if limit is not None]
    return min(known, default=(None, ""))
