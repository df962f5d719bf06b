"""Settings of rewards. Imports without torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from sleuth.errors import did_you_mean
from sleuth.settings import Settings


class NoOptions(Settings):
    """For rewards without options."""


class FormatOptions(Settings):
    think: bool = True


class RetrievalOptions(Settings):
    match: Literal["auto", "title", "answer"] = "auto"
    mode: Literal["share", "any", "all"] = "share"


class SearchCostOptions(Settings):
    free: Annotated[int, Field(ge=0)] = 0


class OverlongOptions(Settings):
    soft: Annotated[int, Field(gt=0)] = 1024
    hard: Annotated[int, Field(gt=0)] = 2048

    @model_validator(mode="after")
    def _in_order(self) -> OverlongOptions:
        if self.hard <= self.soft:
            raise ValueError(f"hard ({self.hard}) must be above soft ({self.soft})")
        return self


OPTIONS: dict[str, type[Settings]] = {
    "exact_match": NoOptions,
    "f1": NoOptions,
    "format": FormatOptions,
    "retrieval": RetrievalOptions,
    "search_cost": SearchCostOptions,
    "repeated_query": NoOptions,
    "overlong": OverlongOptions,
}


class RewardSettings(Settings):
    """One part of the reward, which adds ``weight`` times its value. With weight 0 it is only recorded.

    ``kind`` may be a dotted path to a class, which is called with ``options`` as keyword arguments.
    ``name`` distinguishes two parts of the same kind.
    """

    kind: str
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    name: str = ""
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _options_fit(self) -> RewardSettings:
        if ":" in self.kind:
            return self
        if self.kind not in OPTIONS:
            raise ValueError(f"unknown reward '{self.kind}' ({did_you_mean(self.kind, OPTIONS)})")
        self.checked_options()
        return self

    def checked_options(self) -> dict[str, Any]:
        """The options with defaults filled in. Raises ValueError naming the first invalid one."""
        if ":" in self.kind:
            return dict(self.options)
        model = OPTIONS[self.kind]
        try:
            return model.model_validate(self.options).model_dump()
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, first["loc"]))
            if first["type"] == "extra_forbidden":
                problem = f"unknown option '{key}' ({did_you_mean(key, model.model_fields)})"
            else:
                problem = f"{key}: {first['msg']}".removeprefix(": Value error, ")
            raise ValueError(f"reward '{self.kind}': {problem}") from None

    @property
    def label(self) -> str:
        """The name of the part in logs and saved trajectories."""
        return self.name or self.kind.rpartition(":")[2]
