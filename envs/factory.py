"""Makes environments from settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from envs.config import EnvironmentSettings
from envs.direct_env import DirectEnvironment
from envs.protocols.base import open_protocol
from envs.rag_env import RagEnvironment
from envs.search_env import SearchEnvironment
from sleuth.plugins import load_object
from sleuth.protocols import Environment, TextCodec
from sleuth.reserved import ALL_TAGS

ENVIRONMENTS: dict[str, Callable[[EnvironmentSettings, TextCodec], Environment]] = {
    "search": SearchEnvironment,
    "direct": DirectEnvironment,
    "cot": DirectEnvironment,
    "rag": RagEnvironment,
}


def make_environment(settings: EnvironmentSettings, codec: TextCodec) -> Callable[[], Environment]:
    """A function that creates a new environment for each episode.

    A dotted path names a class, which is called with (settings, codec). Raises ConfigError if it cannot be loaded.
    """
    kind: Callable[[EnvironmentSettings, TextCodec], Environment]
    kind = ENVIRONMENTS[settings.kind] if settings.kind in ENVIRONMENTS else load_object(settings.kind)
    guarded = _guarded(settings, codec)
    return lambda: kind(settings, guarded)


def _guarded(settings: EnvironmentSettings, codec: TextCodec) -> TextCodec:
    """``codec``, to which the tags of one's own tools are reserved strings, so that outside text has none of them."""
    tags = open_protocol(settings).tags if settings.kind == "search" else ()
    own = frozenset(f"<{slash}{tag}>" for tag in tags if tag not in ALL_TAGS for slash in ("", "/"))
    return cast(TextCodec, _Guarded(codec, codec.reserved | own)) if own else codec


class _Guarded:
    def __init__(self, codec: TextCodec, reserved: frozenset[str]) -> None:
        self._codec = codec
        self.reserved = reserved

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)
