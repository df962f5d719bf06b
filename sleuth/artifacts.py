"""Artefacts describe themselves and are written atomically.

A folder is written next to its destination, then renamed; a manifest inside records how it was made.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from sleuth.errors import ArtifactError

MANIFEST = "manifest.json"


@contextlib.contextmanager
def atomic_folder(destination: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``destination`` when the block ends without an error."""
    _refuse_blocked(Path(destination), overwrite)
    final = Path(destination).resolve()
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        _refuse_existing(final, overwrite)
        _replace_folder(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def resumable_folder(destination: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Like `atomic_folder`, but for long jobs: the next run finds what a killed run left in the temporary folder.

    Raises ArtifactError while another process is writing to the same destination.
    """
    _refuse_blocked(Path(destination), overwrite)
    final = Path(destination).resolve()
    temporary = final.with_name(f".{final.name}.part")
    temporary.mkdir(parents=True, exist_ok=True)
    lock = temporary.with_name(f".{final.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ArtifactError(f"another process is writing {final}", "wait for it to finish") from None
        yield temporary
        _refuse_existing(final, overwrite)
        _replace_folder(temporary, final)
        lock.unlink(missing_ok=True)


def check_destination(
    destination: str | Path, overwrite: bool, kinds: Collection[str], inputs: Iterable[str | Path] = ()
) -> None:
    """Refuse, before any work is done, a user-supplied folder that an artefact must not be written to.

    ``overwrite`` deletes what is there, so it is allowed only for an artefact of one of ``kinds`` or an empty folder,
    and never for one that contains any of ``inputs`` or the current folder. Raises ArtifactError.
    """
    given = Path(destination)
    _refuse_blocked(given, overwrite)
    if not given.exists():
        return
    final, wanted = given.resolve(), " or ".join(sorted(kinds))
    for kept in (Path.cwd(), *map(Path, inputs)):
        if kept.resolve().is_relative_to(final):
            raise ArtifactError(f"{given} cannot be replaced: {kept} is inside it", "choose another folder")
    hint = "--overwrite would delete it: choose another folder, or remove it yourself"
    if not (final / MANIFEST).is_file():
        if any(final.iterdir()):
            raise ArtifactError(f"{given} is not a Sleuth {wanted}: it has no {MANIFEST}", hint)
        return
    with contextlib.suppress(ValueError):  # a damaged one may be replaced
        content = json.loads((final / MANIFEST).read_text(encoding="utf-8"))
        kind = content.get("kind") if isinstance(content, dict) else None
        if kind not in kinds:
            raise ArtifactError(f"{given} is not a Sleuth {wanted}: its {MANIFEST} says kind {kind!r}", hint)


def atomic_write(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader sees either the old file or the new one, never a partial one."""
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)


def write_manifest(folder: str | Path, kind: str, fields: Mapping[str, Any]) -> None:
    """Record how an artefact of ``kind`` was made, with the package versions used."""
    if "kind" in fields:
        raise ValueError("'kind' is an argument of its own, not one of the fields")
    content = {"kind": kind, **fields, "versions": versions()}
    atomic_write(Path(folder) / MANIFEST, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def add_to_manifest(folder: str | Path, fields: Mapping[str, Any]) -> None:
    """Record more about an artefact that was just written, such as what it was trained on."""
    path = Path(folder) / MANIFEST
    content = json.loads(path.read_text(encoding="utf-8")) | fields
    atomic_write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_manifest(folder: str | Path, kind: str, rebuild: str) -> dict[str, Any]:
    """The manifest of ``folder``; ``rebuild`` is the command that recreates such an artefact.

    Raises ArtifactError when there is no manifest or it has another kind.
    """
    path = Path(folder) / MANIFEST
    if not Path(folder).exists():
        raise ArtifactError(f"no {kind} at {folder}", f"make it with: {rebuild}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except NotADirectoryError:
        raise ArtifactError(f"{folder} is a file, not a folder of kind '{kind}'", f"make one with: {rebuild}") from None
    except FileNotFoundError:
        raise ArtifactError(f"{folder} has no {MANIFEST}: not a finished {kind}", f"make it with: {rebuild}") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} is damaged", f"rebuild it with: {rebuild}")
    if content.get("kind") != kind:
        raise ArtifactError(f"{folder} is of kind '{content.get('kind')}', not '{kind}'", f"make it with: {rebuild}")
    return content


def versions() -> dict[str, str]:
    """Versions of Sleuth and of the installed packages that affect its results."""
    found = {}
    for name in ("sleuth-rl", "torch", "transformers", "trl", "peft", "pyserini", "datasets", "vllm", "ray"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def fingerprint_of(identity: object) -> str:
    """A short digest of plain values; independent of the order of a mapping's keys."""
    return text_digest(json.dumps(identity, sort_keys=True))[:32]


def weights_stamp(model: str | None) -> list[str]:
    """Name, size and time of a local model's weight files: cheap to read, and different after further training."""
    folder = Path(model or "")
    if not model or not folder.exists():
        return []
    files = (
        [folder] if folder.is_file() else sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))
    )
    return [f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files]


def _replace_folder(new: Path, final: Path) -> None:
    """Rename ``new`` to ``final``; an existing one is moved aside first, since folders cannot be swapped."""
    if not final.exists():
        new.rename(final)
        return
    old = final.with_name(f".{final.name}.old.{os.getpid()}")
    final.rename(old)
    try:
        new.rename(final)
    except OSError:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _refuse_blocked(final: Path, overwrite: bool) -> None:
    blocking = next((path for path in (final, *final.parents) if path.is_file()), None)
    if blocking:
        raise ArtifactError(f"{blocking} is a file, not a folder", "choose another folder")
    _refuse_existing(final, overwrite)


def _refuse_existing(final: Path, overwrite: bool) -> None:
    if final.exists() and not overwrite:
        raise ArtifactError(f"{final} exists already", "choose another folder or pass --overwrite")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
