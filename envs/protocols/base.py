"""What a protocol is: the words of the prompt, how a turn is read and written, where a turn ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from envs.config import EnvironmentSettings
from envs.prompts import Preset
from envs.protocols.hermes import Hermes
from envs.protocols.tags import Tags
from envs.tools import schemas
from sleuth.plugins import make_object
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
    see = "see envs/protocols/base.py"
    protocol: TurnProtocol = make_object(settings.protocol, "protocol", shown, attributes=_MEMBERS, see=see)
    return protocol


_MEMBERS = ("stop_strings", "schemas", "tags", "tool_messages", "wording", "parse", "ended", "write")
