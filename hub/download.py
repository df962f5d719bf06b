"""Downloads files of the hub's data sets: sizes first, resumed where it stopped, checked against the hub's hashes.

What is in place is never touched: a file is fetched beside it, checked, and moved there whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

from hub.reach import reachable
from hub.resources import Product
from sleuth.artifacts import atomic_write
from sleuth.errors import ArtifactError, DataError, first_line

_CHUNK = 1 << 22
_UNPACKED = 3.5
"""A gzip file of text may become so many times as large: more than English text does."""
Say = Callable[[str], None]
"""Told of every file, in a line."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the hub describes it: its SHA-256 where it is kept in LFS, else git's hash of it."""

    name: str
    size: int
    sha256: str | None
    git_hash: str | None


@dataclass(frozen=True, slots=True)
class Planned:
    """A product that is to be made at ``destination`` from ``files`` of one ``revision`` of its repository."""

    product: Product
    destination: Path
    revision: str
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        """Bytes to fetch, less those that an earlier call has fetched."""
        joined = _joined(self) if self.product.how == "join" else []
        left = [file for file in self.files if file.name not in joined]
        return sum(file.size - _bytes_of(_place(self, file)) for file in left)

    @property
    def room(self) -> int:
        """Bytes of disk that it takes while it is made, at most."""
        if self.product.how == "unpack":
            return self.size + int(_UNPACKED * sum(file.size for file in self.files))
        if self.product.how == "join":
            return self.size + max((file.size for file in self.files[1:]), default=0)
        return self.size

    @property
    def staging(self) -> Path:
        """Where its files are until they are whole, on the same disk."""
        return self.destination.with_name(f".{self.destination.name}.download")


def plan(products: Sequence[tuple[Product, Path]]) -> list[Planned]:
    """What is to be fetched for ``products``, each with the folder that it goes under. Nothing is fetched yet.

    Those that are there are left out. Raises DataError if the hub cannot be asked or does not have the files, or if
    one that is there is not whole any more.
    """
    wanted = [(product, root / product.path) for product, root in products]
    for _, destination in wanted:
        if why := changed_since(destination):
            raise DataError(f"{destination} {why}", "delete it and give the same command again")
    wanted = [(product, destination) for product, destination in wanted if not destination.exists()]
    listings: dict[str, tuple[str, list[RemoteFile]]] = {}
    planned = []
    for product, destination in wanted:
        if product.repository not in listings:
            listings[product.repository] = remote_files(product.repository)
        revision, files = listings[product.repository]
        chosen = [file for file in files if any(fnmatch(file.name, pattern) for pattern in product.files)]
        if not chosen:
            raise DataError(
                f"{product.repository} on the hub has no file {' or '.join(product.files)}",
                "its owner may have moved it; look at https://huggingface.co/datasets/" + product.repository,
            )
        planned.append(Planned(product, destination, revision, tuple(sorted(chosen, key=lambda file: file.name))))
    return planned


def remote_files(repository: str) -> tuple[str, list[RemoteFile]]:
    """The newest revision of a data set on the hub, and its files. Raises DataError."""
    from huggingface_hub import HfApi, constants

    if not reachable():
        raise DataError(
            f"{constants.ENDPOINT} cannot be reached, so {repository} cannot be downloaded",
            "on a machine with a network, run the same command there and copy what it made",
        )
    try:
        found = HfApi(endpoint=constants.ENDPOINT).dataset_info(repository, files_metadata=True)
    except Exception as error:  # noqa: BLE001 - the library raises many kinds of errors
        raise DataError(f"the hub does not list the files of {repository}: {first_line(error)}") from None
    files = [
        RemoteFile(one.rfilename, one.size or 0, one.lfs.sha256 if one.lfs else None, one.blob_id)
        for one in found.siblings or []
    ]
    return str(found.sha), files


def fetch(planned: Planned, say: Say, *, bars: bool = False) -> None:
    """Make the product. The same call goes on where an interrupted one stopped. ``bars``: show the library's progress.

    Raises DataError for a file whose hash is not what the hub says; ArtifactError while another process fetches it.
    """
    from huggingface_hub import utils

    (utils.enable_progress_bars if bars else utils.disable_progress_bars)()  # type: ignore[attr-defined]
    staging = planned.staging
    staging.mkdir(parents=True, exist_ok=True)
    with _locked(staging):
        made = {"file": _file, "unpack": _unpack, "join": _join, "folder": _folder}[planned.product.how](planned, say)
        made.replace(planned.destination)
    origin = {"repository": planned.product.repository, "revision": planned.revision}
    made_of = {"files": [asdict(file) for file in planned.files], "bytes": _sizes(planned.destination)}
    atomic_write(record_of(planned.destination), json.dumps(origin | made_of, indent=2) + "\n")
    shutil.rmtree(staging, ignore_errors=True)


def record_of(destination: Path) -> Path:
    """Where it is kept what ``destination`` was made from."""
    return destination.with_name(f".{destination.name}.source.json")


def changed_since(destination: Path) -> str:
    """How a product that is there differs in size from what was downloaded; empty if it does not, or nobody knows."""
    try:
        known: dict[str, int] = json.loads(record_of(destination).read_text(encoding="utf-8"))["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    there = _sizes(destination) if destination.exists() else known
    name = next((name for name in known if there.get(name) != known[name]), None)
    if name is None:
        return ""
    of = f" its {name}" if destination.is_dir() else " it"
    return f"is not what was downloaded:{of} has {there.get(name, 0):,} bytes instead of {known[name]:,}"


def _sizes(made: Path) -> dict[str, int]:
    """Bytes by name, of a file or of those in a folder."""
    return {path.name: path.stat().st_size for path in (made.iterdir() if made.is_dir() else [made])}


def _file(planned: Planned, say: Say) -> Path:
    return _fetched(planned, planned.files[0], say)


def _unpack(planned: Planned, say: Say) -> Path:
    packed = _fetched(planned, planned.files[0], say)
    say(f"unpacking {packed.name}")
    unpacked = planned.staging / "unpacked"
    try:
        with gzip.open(packed, "rb") as source, unpacked.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{packed} is no whole gzip file: {error}") from None
    return unpacked


def _join(planned: Planned, say: Say) -> Path:
    """The parts one after another. Each is deleted once it is appended, so that the disk need not hold them twice."""
    target, done = planned.staging / "joined", _joined(planned)
    if done:
        with target.open("r+b") as file:  # an interrupted append leaves a piece too many
            file.truncate(sum(part.size for part in planned.files if part.name in done))
    for part in planned.files[len(done) :]:
        fetched = _fetched(planned, part, say)
        if done:
            with fetched.open("rb") as source, target.open("ab") as file:
                shutil.copyfileobj(source, file, _CHUNK)
                file.flush()
                os.fsync(file.fileno())
        else:
            fetched.replace(target)
        done = [*done, part.name]
        atomic_write(_joined_record(planned), json.dumps({"revision": planned.revision, "parts": done}))
        fetched.unlink(missing_ok=True)
    return target


def _joined(planned: Planned) -> list[str]:
    """The parts that an earlier call has joined; none if they were of another revision."""
    try:
        known: dict[str, Any] = json.loads(_joined_record(planned).read_text(encoding="utf-8"))
        parts = [str(name) for name in known["parts"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    same = known.get("revision") == planned.revision and (planned.staging / "joined").is_file()
    return parts if same and parts == [file.name for file in planned.files[: len(parts)]] else []


def _joined_record(planned: Planned) -> Path:
    return planned.staging / "joined.json"


def _folder(planned: Planned, say: Say) -> Path:
    """All files in one folder, without the folders that they are in on the hub."""
    folder = planned.staging / "folder"
    folder.mkdir(exist_ok=True)
    for file in planned.files:
        place = folder / Path(file.name).name
        if not place.exists():
            _fetched(planned, file, say).replace(place)
    return folder


def _fetched(planned: Planned, file: RemoteFile, say: Say) -> Path:
    """The file in the staging folder, whole and checked.

    The library's own download begins anew in every process, which is a day for some of these files; its lower half
    goes on from a place.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    path = _place(planned, file)
    if _bytes_of(path) > file.size:
        path.unlink()
    have = _bytes_of(path)
    going_on = f", from {size_of(have)} on" if 0 < have < file.size else ""
    say(f"{file.name}  {size_of(file.size)}{going_on}  {planned.product.repository}")
    url = hf_hub_url(
        planned.product.repository,
        file.name,
        repo_type="dataset",
        revision=planned.revision,
        endpoint=constants.ENDPOINT,
    )
    try:
        with path.open("ab") as target:
            http_get(url, target, resume_size=have, headers=build_hf_headers(), expected_size=file.size)
    except Exception as error:  # noqa: BLE001 - the library raises many kinds of errors
        raise DataError(
            f"cannot download {file.name} of {planned.product.repository}: {first_line(error)}",
            "the same command goes on where it stopped",
        ) from None
    if not _is_whole(path, file):
        path.unlink()
        raise DataError(
            f"{file.name} of {planned.product.repository} is not what the hub says it is: its hash differs",
            "it was deleted; give the same command again",
        )
    return path


def _place(planned: Planned, file: RemoteFile) -> Path:
    """Where the file is while it is fetched; its name tells another version of it."""
    version = (file.sha256 or file.git_hash or "")[:12]
    return planned.staging / f"{file.name.replace('/', '--')}.{version}"


def _bytes_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_whole(path: Path, file: RemoteFile) -> bool:
    with path.open("rb") as content:
        if file.sha256:
            return _digest(hashlib.sha256(), content) == file.sha256
        if file.git_hash:
            head = f"blob {path.stat().st_size}\0".encode()
            return _digest(hashlib.sha1(head, usedforsecurity=False), content) == file.git_hash
    return path.stat().st_size == file.size


def _digest(hasher: Any, content: BinaryIO) -> str:
    while block := content.read(_CHUNK):
        hasher.update(block)
    return str(hasher.hexdigest())


def size_of(size: float) -> str:
    """Bytes for people: powers of ten, as disks and the hub count."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


@contextlib.contextmanager
def _locked(staging: Path) -> Iterator[None]:
    with (staging / ".busy").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ArtifactError(f"another process downloads into {staging}", "wait for it to finish") from None
        yield
