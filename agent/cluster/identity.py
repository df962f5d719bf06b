"""Checks that all nodes run the same code: a hash of the sources and of the versions that affect results."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from agent.cluster.interface import ClusterError
from sleuth.artifacts import versions

PACKAGES = ("sleuth", "hub", "envs", "rewards", "retrieval", "agent", "workflows", "cli")


def code_identity() -> str:
    """Sixteen hexadecimal digits: a hash of Sleuth's source files and of its dependencies' versions."""
    total = hashlib.sha256(repr(sorted(versions().items())).encode())
    for package in PACKAGES:
        for root in _roots(package):
            for path in sorted(root.rglob("*.py")):
                total.update(f"{package}/{path.relative_to(root).as_posix()}\0".encode())
                total.update(path.read_bytes())
    return total.hexdigest()[:16]


def check_identity(expected: str) -> None:
    """Raise ClusterError if this process runs different code from the controller's."""
    import socket

    found = code_identity()
    if found != expected:
        raise ClusterError(
            f"{socket.gethostname()} runs different code from the controller's ({found}, not {expected})",
            "install the same commit and the versions of constraints.txt on every node",
        )


def _roots(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
