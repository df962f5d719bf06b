"""Errors a person can mend: what, where, and how. The program prints them as one line, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class SleuthError(Exception):
    """Base of all errors that a user can cause. ``hint`` says how to mend it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes, whatever a subclass is made from."""
        return _restored, (type(self), vars(self))


def _restored(kind: type[SleuthError], held: dict[str, Any]) -> SleuthError:
    error = kind.__new__(kind, held["message"])
    vars(error).update(held)
    return error


class ConfigError(SleuthError):
    """A setting is missing, unknown or out of range."""


class DataError(SleuthError):
    """A file of questions, passages or predictions is absent or broken."""


class ArtifactError(SleuthError):
    """An index, encoder, checkpoint or run folder does not fit what is asked of it."""


class RetrieverError(SleuthError):
    """A retriever could not answer. Trajectories that meet it are unscored, never zero."""


class PolicyError(SleuthError):
    """A policy cannot be loaded or cannot do what is asked of it."""


class TrainingError(SleuthError):
    """Training cannot go on (a NaN, a collapsed policy); the last checkpoint stays."""


class MissingExtraError(SleuthError):
    """A package that only some users need is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed",
            f"pip install 'sleuth-rl[{extra}]'",
        )


def first_line(error: BaseException) -> str:
    """The first line of what ``error`` says that is not blank; its type where it says nothing."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """What ``word`` was meant to be; None where nothing is near."""
    return next(iter(difflib.get_close_matches(word, sorted(choices), n=1, cutoff=0.6)), None)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A clause naming the nearest choice, or all of them when none is near."""
    known = sorted(choices)
    near = nearest(word, known)
    if near is not None:
        return f"did you mean '{near}'?"
    return f"choose one of: {', '.join(known)}" if known else "nothing can be set here"
