"""Preserves fault handlers: a JVM in this process needs its own."""

from __future__ import annotations

import contextlib
import ctypes
import signal
from collections.abc import Iterator

FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
_ROOM = 1024
"""Bytes for a ``struct sigaction``, whatever the platform's layout."""


@contextlib.contextmanager
def fault_handlers_kept() -> Iterator[None]:
    """Restore the previous fault handlers afterwards.

    Ray's start installs handlers that end the process at any fault, and its shutdown removes all handlers. Java's
    compiled code dereferences null pointers on purpose and recovers in its own handler: without it, an open BM25
    index crashes the process sooner or later.
    """
    before = {number: handler_of(number) for number in FAULTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            ctypes.CDLL(None).sigaction(int(number), handler, None)


def handler_of(number: signal.Signals) -> ctypes.Array[ctypes.c_char]:
    """The C library's own signal handlers, which Python's signal module does not see.

    Each begins with the handler's address; some of the bytes after it are padding.
    """
    held = ctypes.create_string_buffer(_ROOM)
    ctypes.CDLL(None).sigaction(int(number), None, held)
    return held
