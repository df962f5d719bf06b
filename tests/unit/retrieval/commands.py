"""The program, run within a test."""

from __future__ import annotations

from cli.main import main


def run(*words: str) -> int:
    """The exit status of ``sleuth words``."""
    try:
        main(list(words))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
