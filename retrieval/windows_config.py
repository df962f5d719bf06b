"""Settings of the windows into which the passages of an index are cut. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import model_validator

from sleuth.settings import Count, Settings


class WindowSettings(Settings):
    """Windows of so many ``words`` or ``sentences``, each ``stride`` of them after the last; None: side by side."""

    words: Count | None = None
    sentences: Count | None = None
    stride: Count | None = None

    @model_validator(mode="after")
    def _one_unit(self) -> WindowSettings:
        if (self.words is None) == (self.sentences is None):
            raise ValueError("give either words or sentences, the length of a window")
        if self.step > self.size:
            raise ValueError(
                f"a stride of {self.step} leaves out what lies between windows of {self.size}: at most {self.size}"
            )
        return self

    @property
    def size(self) -> int:
        return self.words or self.sentences or 0

    @property
    def step(self) -> int:
        return self.stride or self.size

    @property
    def unit(self) -> str:
        return "words" if self.words else "sentences"

    @property
    def identity(self) -> dict[str, object]:
        """What an index says of its windows."""
        return {self.unit: self.size, "stride": self.step}

    @property
    def options(self) -> str:
        """The options of ``sleuth index`` that make such windows."""
        unit = "" if self.words else " --window-unit sentences"
        return f"--window {self.size} --stride {self.step}{unit}"


def windows_named(window: object) -> str:
    """How people call the windows that an index records."""
    if not isinstance(window, Mapping):
        return "whole passages"
    made = WindowSettings.model_validate(window)
    return f"windows of {made.size} {made.unit} every {made.step}"


def source_named(recorded: Mapping[str, object]) -> str:
    """The corpus that an index records, and the options for its windows, as ``sleuth index`` takes them."""
    window = recorded.get("window")
    options = f" {WindowSettings.model_validate(window).options}" if window else ""
    return f"{recorded['path']}{options}"
