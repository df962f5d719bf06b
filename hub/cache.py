"""The cache folder, for files that can be recreated."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$SLEUTH_CACHE``, or ``sleuth`` in the user's cache folder (``$XDG_CACHE_HOME``, else ``~/.cache``)."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SLEUTH_CACHE") or Path(home) / "sleuth")
