"""What a protocol is: the words of the prompt, how a turn is read and written, where a turn ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from envs.config import EnvironmentSettings
from envs.prompts import Preset
from envs.protocols.hermes import Hermes
from envs.protocols.tags import Tags
from envs.tools import schemas
from sleuth.errors import ConfigError, first_line
from sleuth.plugins import load_object
from sleuth.types import Action

Schema = Mapping[str, Any]


class TurnProtocol(Protocol):
    """How a policy acts and what it reads back. Stateless: one object may serve many episodes.

    ``schemas`` are those of the tools that may be called, search among them; ``tags`` the names of its tags.
    ``tool_messages``: the chat template shows the schemas, and what tools return comes as messages of the role ``tool``
    in the template's own frame, so that it is required; else the prompt says how to act, and what comes back continues
    the policy's own message.
    """

    @property
    def stop_strings(self) -> tuple[str, ...]: ...

    @property
    def schemas(self) -> Sequence[Schema]: ...

    @property
    def tags(self) -> Sequence[str]: ...

    @property
    def tool_messages(self) -> bool: ...

    def wording(self, preset: Preset) -> Preset:
        """``preset`` in the words of this protocol. Raises ConfigError if it has none for it."""
        ...

    def parse(self, text: str, thinking: bool) -> Action:
        """The action in ONE new turn, which begins inside an open thought if ``thinking``."""
        ...

    def ended(self, text: str, thinking: bool) -> bool:
        """Whether the stop string at which sampling ended has ended the turn, or was a mention in a thought."""
        ...

    def write(self, think: str, action: Action) -> str:
        """A turn as a demonstrator writes it: ``parse`` reads ``action`` in it."""
        ...


PROTOCOLS: dict[str, Callable[[Sequence[Schema]], TurnProtocol]] = {"tags": Tags, "hermes": Hermes}


def open_protocol(settings: EnvironmentSettings) -> TurnProtocol:
    """The protocol of these settings, with the tools of the search environment; the others have none.

    A dotted path names a class, which is called with the tools' schemas. Raises ConfigError if it cannot be loaded.
    """
    shown = schemas(settings) if settings.kind == "search" else ()
    if settings.protocol in PROTOCOLS:
        return PROTOCOLS[settings.protocol](shown)
    make: Callable[[Sequence[Schema]], TurnProtocol] = load_object(settings.protocol)
    try:
        protocol = make(shown)
    except ConfigError:
        raise
    except Exception as error:  # anybody's code
        raise ConfigError(f"protocol {settings.protocol}: {first_line(error)}", "see envs/protocols/base.py") from error
    missing = next((name for name in _MEMBERS if not hasattr(protocol, name)), None)
    if missing is not None:
        raise ConfigError(f"protocol {settings.protocol} has no '{missing}'", "see envs/protocols/base.py")
    return protocol


_MEMBERS = ("stop_strings", "schemas", "tags", "tool_messages", "wording", "parse", "ended", "write")
