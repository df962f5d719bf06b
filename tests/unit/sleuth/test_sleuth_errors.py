"""Errors travel between processes whole."""

from __future__ import annotations

import pickle

import pytest

from agent.cluster.interface import ClusterError
from sleuth.errors import ConfigError, MissingExtraError, SleuthError, first_line, last_line


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("no such key", "did you mean 'k'?"),
        ClusterError("no room"),
        MissingExtraError("ray", "ray", "a run"),
    ],
)
def test_an_error_is_the_same_in_another_process(error: SleuthError) -> None:
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is type(error)
    assert (str(there), there.message, there.hint) == (str(error), error.message, error.hint)


@pytest.mark.parametrize(
    ("error", "first", "last"),
    [
        (OSError("no such file\n  at Reader.open"), "no such file", "at Reader.open"),
        (RuntimeError("\n  \n broken \r\n more\n "), "broken", "more"),
        (ValueError(" \n"), "ValueError", "ValueError"),
        (KeyError(), "KeyError", "KeyError"),
    ],
)
def test_the_first_and_the_last_line_say_something(error: Exception, first: str, last: str) -> None:
    assert (first_line(error), last_line(error)) == (first, last)
