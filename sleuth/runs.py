"""Run folders: the resolved config, the finished stages, and a lock for one process at a time.

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
from sleuth.layout import RunLayout, read_record, write_record
from sleuth.settings import flatten

_BEGUN = "begun"
"""In the manifest of a folder that was only prepared: False."""


class RunFolder:
    """The run folder at ``path``. Nothing is touched before ``claim``."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.layout = RunLayout(self.path)

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
        """Lock the folder for this process while the block runs, with ``config`` saved as config.yaml.

        A folder that already holds a run is refused unless ``resume`` (its config must then be the same except for the
        dotted keys in ``may_differ``) or ``overwrite`` (its contents are deleted). Resuming where there is no run
        starts one. ``reread`` turns a config saved by an earlier version into today's form. Raises ArtifactError.

        What was made under the folder before the run is kept: by `prepare`, or artefacts that ``config`` names.
        """
        plain = json.loads(json.dumps(config))
        self._check_is_ours(plain)
        self.path.mkdir(parents=True, exist_ok=True)
        with _locked(self.layout.lock):
            self._check_is_ours(plain)
            if self.begun and overwrite and not resume:
                self._clear()
            elif self.begun and not resume:
                raise ArtifactError(
                    f"{self.path} already holds a run",
                    "--resume continues it, --overwrite replaces it, --out chooses another folder",
                )
            elif self.begun:
                self._check_same(plain, may_differ, reread)
            else:
                self._drop_stages_of_another(plain)
            self._write(plain, {})
            yield self

    @contextlib.contextmanager
    def prepare(self, config: Mapping[str, Any]) -> Iterator[RunFolder]:
        """Lock the folder while the block makes something of a run that is yet to begin, or of the one that is there.

        A later `claim` starts the run and keeps what was made; stages are done again if its config is another.
        """
        plain = json.loads(json.dumps(config))
        self._check_is_ours(plain)
        self.path.mkdir(parents=True, exist_ok=True)
        with _locked(self.layout.lock):
            if not self.begun:
                self._drop_stages_of_another(plain)
                self._write(plain, {_BEGUN: False})
            yield self

    @property
    def begun(self) -> bool:
        """Whether the folder holds a run, finished or not; False too where one was only prepared."""
        return (self.path / MANIFEST).exists() and bool(_manifest_of(self.path).get(_BEGUN, True))

    def stage_done(self, name: str) -> bool:
        return self.layout.stage(name).exists()

    def stage_info(self, name: str) -> dict[str, Any]:
        """What ``mark_done`` recorded; empty if the stage is not done."""
        return read_record(self.layout.stage(name)) or {}

    def mark_done(self, name: str, info: Mapping[str, Any] | None = None) -> None:
        """Record atomically that stage ``name`` is complete; call this once its results are on disk."""
        write_record(self.layout.stage(name), info or {})

    def read_config(self) -> dict[str, Any]:
        """The resolved config that the run was started with."""
        try:
            values = yaml.safe_load(self.layout.config.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ArtifactError(f"{self.path} is not a run folder: it has no {self.layout.config.name}") from None
        return values or {}

    def _write(self, config: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
        write_manifest(self.path, "run", fields)  # first, so that even a run that dies early is recognised
        atomic_write(self.layout.config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def _drop_stages_of_another(self, config: Mapping[str, Any]) -> None:
        """Forget the stages that were prepared for another config; their results check themselves."""
        if self.layout.config.exists() and self.read_config() != config:
            shutil.rmtree(self.layout.stages, ignore_errors=True)

    def _check_is_ours(self, config: Mapping[str, Any]) -> None:
        """Never write among or delete files that were not made by a run, or for the one that ``config`` describes."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise ArtifactError(f"{self.path} is a file, not a run folder", "choose another --out")
        if (self.path / MANIFEST).exists():
            try:
                read_manifest(self.path, "run", "")
            except ArtifactError as error:
                raise ArtifactError(error.message, "choose another --out") from None
        elif any(not entry.name.startswith(".") and not _made_for(entry, config) for entry in self.path.iterdir()):
            raise ArtifactError(f"{self.path} is not empty and is not a Sleuth run", "choose another --out")

    def _check_same(
        self,
        config: Mapping[str, Any],
        may_differ: Collection[str],
        reread: Callable[[dict[str, Any]], Mapping[str, Any]],
    ) -> None:
        if not self.layout.config.exists():
            return  # the run died before it produced anything
        before, now = flatten(reread(self.read_config())), flatten(config)
        for key in sorted(before.keys() | now.keys()):
            free = any(key == name or key.startswith(f"{name}.") for name in may_differ)
            if not free and not _newer_than(key, before) and before.get(key) != now.get(key):
                raise ArtifactError(
                    f"{self.path} was started with {key} = {before.get(key)!r}, not {now.get(key)!r}",
                    "resume with the same settings, or choose another --out",
                )

    def _clear(self) -> None:
        for entry in self.path.iterdir():
            if entry == self.layout.lock:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _made_for(entry: Path, config: Mapping[str, Any]) -> bool:
    """Whether ``entry`` is an artefact that ``config`` names."""
    named = [Path(text).resolve() for text in texts_in(config) if "\0" not in text]
    return entry.resolve() in {way for path in named for way in (path, *path.parents)} and bool(_manifest_of(entry))


def texts_in(value: object) -> list[str]:
    """Every string among the values of a config, at any depth."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [text for part in parts for text in texts_in(part)]


def _manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of an artefact; empty where there is none that can be read."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and content.get("kind") else {}


@contextlib.contextmanager
def _locked(lock: Path) -> Iterator[None]:
    """Hold a lock on the file ``lock``. The kernel releases it when the process dies, however it dies.

    It is a record lock: unlike flock it is not inherited, so a worker that outlives a killed parent does not keep it.
    """
    with lock.open("a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ArtifactError(
                f"{lock.parent} is in use by {_holder(file)}", "wait for it to finish, or choose another --out"
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
    """Whether ``key`` is a setting that did not exist when the run was started, so that its default applied."""
    parts = key.split(".")
    if "options" in parts[:-1]:
        return False  # user-chosen keys, not settings
    return not any(".".join(parts[:count]) in before for count in range(1, len(parts) + 1))
