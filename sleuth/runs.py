"""Run folders: the resolved config, which stages are done, and one process at a time.

run = RunFolder("runs/hotpotqa")
with run.claim(config, resume=True):
    if not run.stage_done("warmstart"):
        ...
        run.mark_done("warmstart", {"loss": 0.4})
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from sleuth.artifacts import MANIFEST, atomic_write, read_manifest, write_manifest
from sleuth.errors import ArtifactError
from sleuth.settings import flatten

CONFIG = "config.yaml"
_LOCK = ".lock"
_STAGES = "stages"


class RunFolder:
    """One run's folder at ``path``. Nothing is touched before ``claim``."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @contextlib.contextmanager
    def claim(
        self,
        config: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        may_differ: Collection[str] = (),
        reread: Callable[[dict[str, Any]], Mapping[str, Any]] = dict,
    ) -> Iterator[RunFolder]:
        """Hold the folder for this process while the block runs, with ``config`` saved as config.yaml.

        A folder that holds a run is refused, unless ``resume`` (its config must be the same, but for the dotted keys
        of ``may_differ``) or ``overwrite`` (its content is deleted). Resuming where there is no run starts one.
        ``reread`` says the config of an earlier version in today's words.
        Raises ArtifactError in one clear line.
        """
        self._check_is_ours()
        self.path.mkdir(parents=True, exist_ok=True)
        plain = json.loads(json.dumps(config))
        with _locked(self.path):
            self._check_is_ours()
            if self._holds_run() and overwrite and not resume:
                self._clear()
            elif self._holds_run() and not resume:
                raise ArtifactError(
                    f"{self.path} holds a run already",
                    "--resume continues it, --overwrite replaces it, --out takes another folder",
                )
            elif self._holds_run():
                self._check_same(plain, may_differ, reread)
            write_manifest(self.path, "run", {})  # first: with it the folder is known as a run, however early it dies
            atomic_write(self.path / CONFIG, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
            yield self

    def stage_done(self, name: str) -> bool:
        return self._marker(name).exists()

    def stage_info(self, name: str) -> dict[str, Any]:
        """What ``mark_done`` recorded; empty when the stage is not done."""
        try:
            info: dict[str, Any] = json.loads(self._marker(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return info

    def mark_done(self, name: str, info: Mapping[str, Any] | None = None) -> None:
        """Record, atomically, that stage ``name`` is complete; call it after its results are on disk."""
        atomic_write(self._marker(name), json.dumps(dict(info or {}), indent=2) + "\n")

    def read_config(self) -> dict[str, Any]:
        """The resolved config that the run was started with."""
        try:
            values = yaml.safe_load((self.path / CONFIG).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ArtifactError(f"{self.path} holds no run: it has no {CONFIG}") from None
        return values or {}

    def _marker(self, name: str) -> Path:
        return self.path / _STAGES / f"{name}.json"

    def _holds_run(self) -> bool:
        return (self.path / MANIFEST).exists()

    def _check_is_ours(self) -> None:
        """Never write among, or delete, files that no run has made."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise ArtifactError(f"{self.path} is a file, not a run folder", "choose another --out")
        if self._holds_run():
            try:
                read_manifest(self.path, "run", "")
            except ArtifactError as error:
                raise ArtifactError(error.message, "choose another --out") from None
        elif any(not entry.name.startswith(".") for entry in self.path.iterdir()):
            raise ArtifactError(f"{self.path} is not empty and holds no run of Sleuth", "choose another --out")

    def _check_same(
        self,
        config: Mapping[str, Any],
        may_differ: Collection[str],
        reread: Callable[[dict[str, Any]], Mapping[str, Any]],
    ) -> None:
        if not (self.path / CONFIG).exists():
            return  # it died before anything was made
        before, now = flatten(reread(self.read_config())), flatten(config)
        for key in sorted(before.keys() | now.keys()):
            free = any(key == name or key.startswith(f"{name}.") for name in may_differ)
            if not free and not _newer_than(key, before) and before.get(key) != now.get(key):
                raise ArtifactError(
                    f"{self.path} was started with {key} = {before.get(key)!r}, not {now.get(key)!r}",
                    "resume with the same settings, or take another --out",
                )

    def _clear(self) -> None:
        for entry in self.path.iterdir():
            if entry.name == _LOCK:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold ``folder``'s lock. The kernel drops it when the process dies, however it dies.

    A record lock: unlike flock it is not inherited, so a worker that outlives a killed parent does not keep it.
    """
    with (folder / _LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ArtifactError(
                f"{folder} is in use by {_holder(file)}", "wait for it, or take another --out"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _holder(file: IO[str]) -> str:
    file.seek(0)
    pid = file.read().strip()
    return f"process {pid}" if pid else "another process"


def _newer_than(key: str, before: Mapping[str, Any]) -> bool:
    """Whether ``key`` is a setting that did not exist when the run was started: it has its default then."""
    parts = key.split(".")
    if "options" in parts[:-1]:
        return False  # keys of someone else's choosing, not settings
    return not any(".".join(parts[:count]) in before for count in range(1, len(parts) + 1))
