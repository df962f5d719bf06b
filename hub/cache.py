"""The cache folder, for files that can be recreated."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$SLEUTH_CACHE``, or ``sleuth`` in the user's cache folder (``$XDG_CACHE_HOME``, else ``~/.cache``).

    A relative ``$XDG_CACHE_HOME`` is ignored, as its specification demands.
    """
    if own := os.environ.get("SLEUTH_CACHE"):
        return Path(own)
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "sleuth"
