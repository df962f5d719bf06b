"""Settings of the credit schemes, by ``kind``. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Protocol, Union

from pydantic import Discriminator, Field, Tag, field_validator

from agent.learning.credit.group import GroupSettings
from sleuth.errors import ConfigError, did_you_mean
from sleuth.plugins import load_object
from sleuth.protocols import Credit
from sleuth.settings import Settings

KINDS: dict[str, type[Settings]] = {
    "group": GroupSettings,
}


class OutsideSettings(Settings):
    """A custom scheme: ``kind`` is the dotted path of its class, ``options`` its keyword arguments."""

    kind: str
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("kind")
    @classmethod
    def _is_there(cls, kind: str) -> str:
        if ":" not in kind:
            raise ValueError(f"unknown credit scheme ({did_you_mean(kind, KINDS)})")
        return kind

    def open(self) -> Credit:
        try:
            credit: Credit = load_object(self.kind)(**self.options)
        except TypeError as error:
            raise ConfigError(f"grpo.credit {self.kind}: {error}", "look at its options") from None
        return credit


def _kind(value: Any) -> str:
    kind = value.get("kind", "group") if isinstance(value, dict) else getattr(value, "kind", "")
    return kind if isinstance(kind, str) and kind in KINDS else "outside"


if TYPE_CHECKING:

    class CreditSettings(Protocol):
        """Settings of any scheme."""

        @property
        def kind(self) -> str: ...

        def open(self) -> Credit: ...
else:
    _MEMBERS = [Annotated[one, Tag(kind)] for kind, one in {**KINDS, "outside": OutsideSettings}.items()]
    CreditSettings = Annotated[Union[tuple(_MEMBERS)], Discriminator(_kind)]  # noqa: UP007 - of a list
