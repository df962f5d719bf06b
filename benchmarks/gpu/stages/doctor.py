"""What the machine is: driver, torch, memory, which packages can be imported, and whether the index can be searched."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import time
from importlib import metadata
from typing import Any

from benchmarks.gpu.context import Context
from sleuth.errors import ConfigError, first_line

NEEDED = (
    "torch",
    "transformers",
    "tokenizers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "sentence_transformers",
    "faiss",
)
WELCOME = ("vllm", "flash_attn", "ray", "matplotlib", "tensorboard")
"""Used where they are there; a run does without them."""


def look(context: Context) -> dict[str, Any]:
    """Raises ConfigError if there is no such device, or a package that is needed cannot be imported."""
    import torch

    from workflows.logs import quiet_libraries

    quiet_libraries()
    figures = context.parts.do("machine", lambda: _machine(context))
    found = context.parts.do("packages", lambda: {name: _imported(name) for name in (*NEEDED, *WELCOME)})
    if context.on_gpu and not torch.cuda.is_available():
        raise ConfigError("torch sees no GPU here", "--device cpu --small tries the same without one")
    broken = [f"{name} ({found[name]})" for name in NEEDED if found and not str(found[name])[:1].isdigit()]
    if broken:
        raise ConfigError(f"cannot be imported: {', '.join(broken)}", "name what is there with prepare --have")
    searched = context.parts.do("search", lambda: _search(context))  # before minutes are spent
    return {"machine": figures, "packages": found, "search": searched}


def _search(context: Context) -> dict[str, Any]:
    """The config can be read, its retriever opened and searched."""
    from workflows.wiring import make_retriever, read_questions

    settings = context.settings()
    retriever = make_retriever(settings.retriever)
    if retriever is None or settings.data.dev is None:
        return {"left_out": "the config searches nothing"}
    asked = [question.text for question in read_questions(settings.data.dev, 64)]
    retriever.search(asked[:1], 1)
    started = time.perf_counter()
    hits = retriever.search(asked, settings.environment.top_k)
    took = time.perf_counter() - started
    return {"queries": len(asked), "search_s": took, "first": hits[0][0].passage.title if hits[0] else None}


def _machine(context: Context) -> dict[str, Any]:
    import torch

    disk = shutil.disk_usage(context.work)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    figures: dict[str, Any] = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "disk_free_gib": round(disk.free / 2**30, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        figures |= {
            "gpu": torch.cuda.get_device_name(),
            "gpus": torch.cuda.device_count(),
            "capability": ".".join(map(str, torch.cuda.get_device_capability())),
            "gpu_free_gib": round(free / 2**30, 1),
            "gpu_gib": round(total / 2**30, 1),
            "bfloat16": torch.cuda.is_bf16_supported(),
        }
    return figures


def _driver() -> str | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None


def _imported(name: str) -> str:
    """The version of the package; what is wrong with it, or that it is absent, otherwise."""
    if importlib.util.find_spec(name) is None:
        return "absent"
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a broken installation raises anything
        return f"broken: {first_line(error)}"
    return next(iter(metadata.version(d) for d in metadata.packages_distributions().get(name, ())), "0 (no version)")
