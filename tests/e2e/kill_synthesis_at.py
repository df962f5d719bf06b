"""Run ``sleuth`` and kill this process the hard way when the n-th reply is on disk: ``kill_synthesis_at.py 7 …``."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from workflows.synthesis.journal import Journal


def arm(last: int) -> None:
    add, count = Journal.add, 0

    def dying_add(self: Journal, request: Any, reply: Any) -> None:
        nonlocal count
        add(self, request, reply)
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.add = dying_add  # type: ignore[method-assign]


if __name__ == "__main__":
    arm(int(sys.argv[1]))
    from cli.main import main

    main(sys.argv[2:])
