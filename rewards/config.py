"""Settings of rewards, by ``kind``. Imports without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field, SerializeAsAny

from sleuth.kinds import KindSettings
from sleuth.plugins import make_object
from sleuth.protocols import Reward
from sleuth.settings import validate


class RewardSettings(KindSettings):
    """One part of the reward, which adds ``weight`` times its value. With weight 0 it is only recorded.

    ``name`` distinguishes two parts of the same kind. The other settings are those of the kind.
    """

    NOUN: ClassVar[str] = "reward"
    KINDS: ClassVar[Mapping[str, str]] = {
        "exact_match": "rewards.outcome:ExactMatchSettings",
        "f1": "rewards.outcome:F1Settings",
        "cover_match": "rewards.outcome:CoverMatchSettings",
        "judge": "rewards.judge:JudgeRewardSettings",
        "format": "rewards.format:FormatSettings",
        "search_r1_format": "rewards.search_r1:SearchR1FormatSettings",
        "retrieval": "rewards.retrieval:RetrievalSettings",
        "search_cost": "rewards.costs:SearchCostSettings",
        "repeated_query": "rewards.costs:RepeatedQuerySettings",
        "no_search": "rewards.costs:NoSearchSettings",
        "no_answer": "rewards.costs:NoAnswerSettings",
        "overlong": "rewards.costs:OverlongSettings",
    }
    OUTSIDE: ClassVar[str] = "rewards.config:OutsideSettings"
    FREE: ClassVar[frozenset[str]] = frozenset()
    """Settings that no value depends on, such as a server's address: a resumed run may change them."""

    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    name: str = ""

    def open(self) -> Reward:
        """The reward itself. Raises ConfigError. Every kind has its own."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """The name of the part in logs and saved trajectories."""
        return self.name or self.kind.rpartition(":")[2]

    @classmethod
    def spelled_out(cls, value: Any) -> Any:
        """Earlier versions kept a kind's own settings under ``options``, as those of a dotted path still are."""
        kind, options = (value.get("kind"), value.get("options", {})) if isinstance(value, Mapping) else (None, None)
        if not isinstance(kind, str) or kind not in cls.KINDS or not isinstance(options, Mapping):
            return value
        plain = {**options, **{name: given for name, given in value.items() if name != "options"}}
        if kind == "judge" and "url" in plain:
            plain.setdefault("base_url", plain.pop("url"))
        return plain


def reread(saved: Sequence[Any], now: Sequence[RewardSettings], where: str) -> list[dict[str, Any]]:
    """Rewards saved by this or an earlier version, as plain values of today's form, with their ``FREE`` settings as
    they are ``now``. Raises ConfigError.
    """
    read = [validate(RewardSettings, one, where) for one in saved]
    if [one.label for one in read] == [one.label for one in now]:
        pairs = zip(read, now, strict=True)
        read = [one.model_copy(update={name: getattr(new, name) for name in one.FREE & new.FREE}) for one, new in pairs]
    return [one.model_dump(mode="json") for one in read]


class OutsideSettings(RewardSettings):
    """A reward of one's own: ``kind`` is the dotted path of its class, which is called with ``options`` as keywords."""

    options: dict[str, Any] = Field(default_factory=dict)

    def open(self) -> Reward:
        see = "see sleuth.protocols.Reward"
        reward: Reward = make_object(self.kind, "reward", options=self.options, methods=["score"], see=see)
        return reward


AnyReward = SerializeAsAny[RewardSettings]
"""A reward's settings, written with what only its kind has."""
