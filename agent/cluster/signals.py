"""Handlers of faults, kept as they were: a Java machine in this process lives by its own."""

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
    """Put back, afterwards, what answered to faults before.

    Ray's start installs handlers that end the process at any fault, and its end takes away whatever is there. Java's
    compiled code reads through null pointers on purpose and recovers in its own handler: without it a BM25 index that
    was open before takes the process down, sooner or later.
    """
    before = {number: handler_of(number) for number in FAULTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            ctypes.CDLL(None).sigaction(int(number), handler, None)


def handler_of(number: signal.Signals) -> ctypes.Array[ctypes.c_char]:
    """The C library's own record of what answers to a signal, which Python's signal module does not see.

    It begins with the handler's address; of what follows some bytes mean nothing.
    """
    held = ctypes.create_string_buffer(_ROOM)
    ctypes.CDLL(None).sigaction(int(number), None, held)
    return held
