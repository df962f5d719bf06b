"""Errors travel between processes whole."""

from __future__ import annotations

import pickle

import pytest

from agent.cluster.interface import ClusterError
from sleuth.errors import ConfigError, MissingExtraError, SleuthError


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
