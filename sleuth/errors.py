"""Errors that a user can fix: what is wrong, where, and how to fix it. Printed as one line, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class SleuthError(Exception):
    """Base of all errors that a user can cause. ``hint`` says how to fix it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Makes errors picklable whatever arguments a subclass's constructor takes."""
        return _restored, (type(self), vars(self))


def _restored(kind: type[SleuthError], held: dict[str, Any]) -> SleuthError:
    error = kind.__new__(kind, held["message"])
    vars(error).update(held)
    return error


class ConfigError(SleuthError):
    """A setting is missing, unknown or out of range."""


class DataError(SleuthError):
    """A file of questions, passages or predictions is missing or malformed."""


class PictureError(DataError):
    """A picture that is not read. ``reason``: one of a few fixed phrases, so that such pictures can be counted."""

    def __init__(self, message: str, hint: str, reason: str) -> None:
        super().__init__(message, hint)
        self.reason = reason


class ArtifactError(SleuthError):
    """An index, encoder, checkpoint or run folder does not fit the requested use."""


class RetrieverError(SleuthError):
    """A retriever could not answer. The affected trajectories are unscored, which is not a reward of zero."""


class ScoringError(SleuthError):
    """A trajectory could not be scored, because a judge failed. It is unscored, which is not a reward of zero."""


class ToolError(SleuthError):
    """A tool cannot do what the policy asked of it. The policy reads the message."""


class PolicyError(SleuthError):
    """A policy cannot be loaded or does not support what is requested."""


class TrainingError(SleuthError):
    """Training cannot continue (a NaN, a collapsed policy); the last checkpoint is kept."""


class MissingExtraError(SleuthError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str, otherwise: str = "") -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed",
            ", ".join(filter(None, (f"pip install 'sleuth-rl[{extra}]'", otherwise))),
        )


def first_line(error: BaseException) -> str:
    """The first non-blank line of the error's message; the name of its type if it has none."""
    return _lines(error)[0]


def last_line(error: BaseException) -> str:
    """The last non-blank line, which says what happened where the others are a traceback; else the type's name."""
    return _lines(error)[-1]


def _lines(error: BaseException) -> list[str]:
    return [line for text in str(error).splitlines() if (line := text.strip())] or [type(error).__name__]


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that ``word`` most resembles; None if none is close."""
    return next(iter(difflib.get_close_matches(word, sorted(choices), n=1, cutoff=0.6)), None)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A hint naming the closest choice, or all of them if none is close."""
    known = sorted(choices)
    near = nearest(word, known)
    if near is not None:
        return f"did you mean '{near}'?"
    return f"choose one of: {', '.join(known)}" if known else "there are no settings here"
