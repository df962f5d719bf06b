"""Do all nodes run the same code? A hash of the packages' sources, and the versions that decide results."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from agent.cluster.interface import ClusterError
from sleuth.artifacts import versions

PACKAGES = ("sleuth", "hub", "envs", "rewards", "retrieval", "agent", "workflows", "cli")


def code_identity() -> str:
    """Sixteen hexadecimal digits of every source file of Sleuth and of the versions of what it stands on."""
    total = hashlib.sha256(repr(sorted(versions().items())).encode())
    for package in PACKAGES:
        for root in _roots(package):
            for path in sorted(root.rglob("*.py")):
                total.update(f"{package}/{path.relative_to(root).as_posix()}\0".encode())
                total.update(path.read_bytes())
    return total.hexdigest()[:16]


def check_identity(expected: str) -> None:
    """Raise ClusterError where this process runs other code than the controller."""
    import socket

    found = code_identity()
    if found != expected:
        raise ClusterError(
            f"{socket.gethostname()} runs other code than the controller ({found}, not {expected})",
            "install the same commit and the versions of constraints.txt on every node",
        )


def _roots(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
