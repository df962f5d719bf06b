"""Settings of the credit schemes, by ``kind``. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from sleuth.kinds import KindSettings
from sleuth.plugins import make_object
from sleuth.protocols import Credit


class CreditSettings(KindSettings):
    """How rewards become advantages. Validating gives the settings of the kind that is named: ``group`` if none is.

    ``credit: leave_one_out`` is short for ``credit: {kind: leave_one_out}``.
    """

    NOUN: ClassVar[str] = "credit scheme"
    KINDS: ClassVar[Mapping[str, str]] = {
        "group": "agent.learning.credit.group:GroupSettings",
        "leave_one_out": "agent.learning.credit.leave_one_out:LeaveOneOutSettings",
        "reinforce": "agent.learning.credit.reinforce:ReinforceSettings",
        "turns": "agent.learning.credit.turns:TurnsSettings",
    }
    OUTSIDE: ClassVar[str] = "agent.learning.credit.config:OutsideSettings"
    BY_TOKEN: ClassVar[bool] = False
    """Whether advantages differ within a trajectory, which not every loss can use."""

    def open(self) -> Credit:
        """The scheme itself. Raises ConfigError. Every kind has its own."""
        raise NotImplementedError

    @classmethod
    def spelled_out(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"kind": value}
        return {"kind": "group", **value} if isinstance(value, Mapping) else value


class OutsideSettings(CreditSettings):
    """A scheme of one's own: ``kind`` is the dotted path of its class, which is called with ``options`` as keywords."""

    options: dict[str, Any] = Field(default_factory=dict)

    def open(self) -> Credit:
        see = "see sleuth.protocols.Credit"
        credit: Credit = make_object(self.kind, "grpo.credit", options=self.options, methods=["advantages"], see=see)
        return credit
