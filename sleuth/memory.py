"""How much memory a process has needed."""

from __future__ import annotations

import resource
import sys

_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in what the system counts."""


def peak_mib() -> float:
    """The most memory, in MiB, that this process has had resident at once since it began."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT / 2**20, 1)
