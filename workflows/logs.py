"""Sends Sleuth's own messages to standard error and silences the libraries."""

from __future__ import annotations

import logging
import os
import warnings

_LIBRARIES = (
    *("accelerate", "datasets", "httpx", "kivy", "peft", "sentence_transformers", "torch", "transformers", "trl"),
)


def quiet_libraries() -> None:
    """Show Sleuth's warnings and only errors of the libraries. Call this before they are imported."""
    from rich.console import Console
    from rich.logging import RichHandler

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("KIVY_NO_CONSOLELOG", "1")
    warnings.filterwarnings("ignore", module=r"(trl|transformers|torch|peft|accelerate|datasets|vllm)\b.*")
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    ours = logging.getLogger("sleuth")
    if not ours.handlers:
        ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    from datasets.utils.logging import disable_progress_bar
    from transformers.utils import logging as transformers_logging

    disable_progress_bar()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
