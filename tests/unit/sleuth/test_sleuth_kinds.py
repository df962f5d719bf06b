"""Settings that come in kinds: what their base checks, whatever they are settings of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pytest

from sleuth.errors import ConfigError
from sleuth.kinds import KindSettings


class Shape(KindSettings):
    NOUN: ClassVar[str] = "shape"
    KINDS: ClassVar[Mapping[str, str]] = {"line": f"{__name__}:Line"}


class Line(Shape):
    kind: Literal["line"] = "line"
    start: int
    name: str = "l"


def test_a_required_setting_may_be_zero() -> None:
    assert Shape.of(kind="line", start=0) == Line(start=0)


@pytest.mark.parametrize("values", [{}, {"start": None}])
def test_a_required_setting_that_is_absent_is_named(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="start is missing"):
        Shape.of(kind="line", **values)
