"""Cuts a folder into pieces small enough to be carried, and makes it again from them.

The folder becomes one compressed archive, whose bytes depend on the contents alone; the pieces are slices of it, listed
with their hashes in ``pieces.json``. Only the standard library is used: where pieces are joined nothing is installed.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sleuth.artifacts import atomic_folder, atomic_write, file_digest, fingerprint_of
from sleuth.errors import ArtifactError

MIB = 2**20
LARGEST = 60 * MIB
"""Bytes of a piece."""
LIST = "pieces.json"
_FORMAT = 1
_BUFFER = 4 * MIB

OnPiece = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Piece:
    name: str
    bytes: int
    sha256: str

    def why_unfit(self, path: Path) -> str | None:
        """What is wrong with the file at ``path``; None if it is this piece."""
        size = path.stat().st_size
        if size != self.bytes:
            return f"it has {size:,} bytes of {self.bytes:,}"
        found = file_digest(path)
        return None if found == self.sha256 else f"its SHA-256 is {found[:12]}…, not {self.sha256[:12]}…"


@dataclass(frozen=True, slots=True)
class Load:
    """The pieces in their order, how much they hold, and whatever else was to be known of it (``about``)."""

    pieces: tuple[Piece, ...]
    files: int
    bytes: int
    about: Mapping[str, Any]

    @property
    def digest(self) -> str:
        return fingerprint_of([piece.sha256 for piece in self.pieces])

    @property
    def carried(self) -> int:
        return sum(piece.bytes for piece in self.pieces)

    def write(self, path: Path) -> None:
        atomic_write(path, json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Load:
        """Raises ArtifactError for a list that is damaged or of another format."""
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            if held["format"] != _FORMAT:
                raise ArtifactError(f"{path} is of format {held['format']}, not {_FORMAT}", "prepare it anew")
            pieces = tuple(Piece(Path(one["name"]).name, int(one["bytes"]), one["sha256"]) for one in held["pieces"])
            return cls(pieces, int(held["files"]), int(held["bytes"]), dict(held["about"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise ArtifactError(f"{path} is damaged", "carry it again, or prepare it anew") from None


def cut(
    folder: Path, out: Path, about: Mapping[str, Any], *, largest: int = LARGEST, tell: OnPiece = lambda _: None
) -> Load:
    """Write the pieces of ``folder`` and their list to the folder ``out``, replacing what was cut there before."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise ArtifactError(f"{folder} is empty", "there is nothing to carry")
    with atomic_folder(out, overwrite=True) as temporary:
        slices = _Slices(temporary, largest, tell)
        with (
            gzip.GzipFile("", "wb", 1, slices, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
        ):
            for path in files:
                entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
                entry.size = path.stat().st_size
                with path.open("rb") as content:
                    archive.addfile(entry, content)
        load = Load(tuple(slices.finish()), len(files), sum(path.stat().st_size for path in files), about)
        load.write(temporary / LIST)
    return load


def find(places: Iterable[Path]) -> tuple[Load, dict[str, Path]]:
    """The load whose list lies in one of ``places`` (folders), and where each of its pieces lies, unchecked.

    Raises ArtifactError if there is no list, or there are several that differ.
    """
    folders = [place for place in places if place.is_dir()]
    lists = [folder / LIST for folder in folders if (folder / LIST).is_file()]
    loads = [Load.read(path) for path in lists]
    if not loads:
        said = ", ".join(map(str, folders)) or "no such folder"
        raise ArtifactError(f"there is no {LIST} ({said})", "name the folder in which it was carried, with its pieces")
    if len({load.digest for load in loads}) > 1:
        raise ArtifactError(f"{' and '.join(map(str, lists))} list different pieces", "name the folders of one load")
    load = loads[0]
    wanted = [piece.name for piece in load.pieces]
    return load, {name: folder / name for folder in folders for name in wanted if (folder / name).is_file()}


def check(load: Load, found: Mapping[str, Path]) -> None:
    """Raises ArtifactError for a piece that is damaged."""
    for piece in load.pieces:
        reason = piece.why_unfit(found[piece.name]) if piece.name in found else None
        if reason:
            raise ArtifactError(f"{found[piece.name]} is damaged: {reason}", "carry it again")


def missing(load: Load, found: Mapping[str, Path]) -> list[str]:
    return [piece.name for piece in load.pieces if piece.name not in found]


def keep(load: Load, found: Mapping[str, Path], store: Path) -> None:
    """Copy the pieces that are there to ``store``, for when the others come."""
    store.mkdir(parents=True, exist_ok=True)
    load.write(store / LIST)
    for name, path in found.items():
        if path.parent.resolve() != store.resolve():
            shutil.copyfile(path, store / f".{name}")
            (store / f".{name}").replace(store / name)


def join(load: Load, found: Mapping[str, Path], out: Path) -> None:
    """Make the folder that was cut, at ``out``. The pieces must be there and checked."""
    with atomic_folder(out, overwrite=True) as temporary, _reader([found[piece.name] for piece in load.pieces]) as all_:
        try:
            with tarfile.open(fileobj=all_, mode="r|gz") as archive:
                archive.extractall(temporary, filter="data")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ArtifactError(f"the pieces make no folder: {error}", "prepare them anew") from None
        held = sum(path.is_file() for path in temporary.rglob("*"))
        if held != load.files:
            raise ArtifactError(f"the pieces hold {held} files of {load.files}", "prepare them anew")


class _Slices(io.RawIOBase):
    """What is written to it goes to files of at most ``largest`` bytes."""

    def __init__(self, folder: Path, largest: int, tell: OnPiece) -> None:
        self._folder, self._largest, self._tell = folder, largest, tell
        self._pieces: list[Piece] = []
        self._held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._held += data
        while len(self._held) >= self._largest:
            self._put(self._largest)
        return len(data)

    def finish(self) -> list[Piece]:
        if self._held:
            self._put(len(self._held))
        return self._pieces

    def _put(self, size: int) -> None:
        content = bytes(self._held[:size])
        del self._held[:size]
        piece = Piece(f"piece-{len(self._pieces) + 1:03d}", size, hashlib.sha256(content).hexdigest())
        (self._folder / piece.name).write_bytes(content)
        self._pieces.append(piece)
        self._tell(piece.name)


@contextmanager
def _reader(paths: Sequence[Path]) -> Iterator[io.BufferedReader]:
    """One stream of the files' bytes."""
    with io.BufferedReader(_Joined(paths), _BUFFER) as stream:
        yield stream


class _Joined(io.RawIOBase):
    def __init__(self, paths: Sequence[Path]) -> None:
        self._left = list(paths)
        self._file: io.BufferedReader | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._file is None:
                if not self._left:
                    return 0
                self._file = self._left.pop(0).open("rb")
            count = self._file.readinto(buffer)
            if count:
                return count
            self._file.close()
            self._file = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()
