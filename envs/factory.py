"""Makes environments from settings."""

from __future__ import annotations

from collections.abc import Callable

from envs.config import EnvironmentSettings
from envs.direct_env import DirectEnvironment
from envs.protocols.base import TurnProtocol, open_protocol
from envs.rag_env import RagEnvironment
from envs.search_env import SearchEnvironment
from sleuth.plugins import load_object
from sleuth.protocols import Environment, TextCodec

ENVIRONMENTS: dict[str, Callable[[EnvironmentSettings, TextCodec, TurnProtocol], Environment]] = {
    "search": SearchEnvironment,
    "direct": DirectEnvironment,
    "cot": DirectEnvironment,
    "rag": RagEnvironment,
}


def make_environment(settings: EnvironmentSettings, codec: TextCodec) -> Callable[[], Environment]:
    """A function that creates a new environment for each episode.

    A dotted path names a class, which is called with (settings, codec). Raises ConfigError if it cannot be loaded.
    """
    if settings.kind not in ENVIRONMENTS:
        outside: Callable[[EnvironmentSettings, TextCodec], Environment] = load_object(settings.kind)
        return lambda: outside(settings, codec)
    kind, protocol = ENVIRONMENTS[settings.kind], open_protocol(settings)
    return lambda: kind(settings, codec, protocol)
