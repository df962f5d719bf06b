"""What actors of the tests do; in a file of its own, so that their processes import next to nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np

from sleuth.errors import ConfigError


class Rows:
    """Rows that say which passage they are of. The process that comes to passage 40 first dies there."""

    def __init__(self, fatal: Path) -> None:
        self.fatal = fatal

    def __call__(self) -> Any:
        return self.work

    def work(self, piece: range) -> Any:
        if 40 in piece and not self.fatal.exists():
            self.fatal.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return np.array([[row, os.getpid()] for row in piece], dtype=np.float32)


class Mistaken:
    def __call__(self) -> Any:
        raise ConfigError("a worker has another encoder (a, not b)", "share its folder")
