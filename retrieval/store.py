"""The passages of an index on disk: a jsonl file, its line offsets, a sorted table of id hashes, and any pictures.

Passages are read from memory-mapped files by ordinal or by id, from any number of threads. Writing
takes constant memory but for 16 bytes a passage, which also find duplicate ids while streaming.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hub.pictures import read_image
from retrieval.documents import document_around
from sleuth.errors import ArtifactError
from sleuth.types import FilePart, Image, Passage

PASSAGES = "passages.jsonl"
OFFSETS = "passages.offsets"
"""uint64, little-endian: where each line of PASSAGES begins, and its size at the end."""
IMAGES = "passages.images"
"""The bytes of all pictures, end to end; each line of PASSAGES says where its own are. Absent if there are none."""
IDS = "passages.ids.npy"
"""uint64 [2, passages]: hashes of the ids in ascending order, and the ordinal of each."""

_RUN = 65_536
_OFFSET = struct.Struct("<Q")
_decode = json.JSONDecoder().decode

Words = NDArray[np.uint64]


class StoreWriter:
    """Writes a store into ``folder``, in the order of `add`; leave the ``with`` block to finish it."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lines = (self._folder / PASSAGES).open("w+b")
        self._offsets = (self._folder / OFFSETS).open("w+b")
        self._offsets.write(_OFFSET.pack(0))
        self._count = 0
        self._size = 0
        self._ids = _IdTable()
        self._images = _ImageFile(self._folder / IMAGES)
        self._digest = hashlib.sha256()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._lines.close()
        self._offsets.close()
        self._images.close()
        if kind is None:
            np.save(self._folder / IDS, self._ids.sorted())

    def __len__(self) -> int:
        return self._count

    @property
    def digest(self) -> str:
        """SHA-256 of the passages written so far; the same for one corpus in any layout."""
        return self._digest.hexdigest()

    def add(self, passages: Sequence[Passage]) -> list[bool]:
        """Append ``passages``; False marks one whose id is in the store already and was not written."""
        hashes = id_hashes([passage.id for passage in passages])
        suspects = self._ids.find(hashes)
        fresh: set[str] = set()
        accepted = []
        for passage, hashed, known in zip(passages, hashes.tolist(), suspects, strict=True):
            new = passage.id not in fresh and all(self._id_at(ordinal) != passage.id for ordinal in known)
            accepted.append(new)
            if new:
                fresh.add(passage.id)
                self._append(passage, hashed)
        return accepted

    def _append(self, passage: Passage, hashed: int) -> None:
        line = _to_line(passage, self._images.add(passage.image) if passage.image else None)
        self._ids.add(hashed, self._count)
        self._lines.write(line)
        self._digest.update(line)
        self._size += len(line)
        self._count += 1
        self._offsets.write(_OFFSET.pack(self._size))

    def _id_at(self, ordinal: int) -> str:
        """The id written at ``ordinal``: equal hashes alone prove nothing."""
        self._offsets.flush()
        self._lines.flush()
        start, end = struct.unpack("<QQ", os.pread(self._offsets.fileno(), 16, 8 * ordinal))
        return _from_line(os.pread(self._lines.fileno(), end - start, start), self._folder).id


class PassageStore:
    """Random access to the passages that a `StoreWriter` left in ``folder``."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = root = Path(folder)
        try:
            # plain views of the mapped files: indexing a memmap itself is several times slower
            self._offsets: Words = np.asarray(np.memmap(root / OFFSETS, dtype="<u8", mode="r"))
            self._hashes, self._ordinals = np.asarray(np.load(root / IDS, mmap_mode="r"))
            with (root / PASSAGES).open("rb") as file:
                self._lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError, EOFError) as error:
            raise ArtifactError(f"the passages of {folder} cannot be read: {error}", "build the index anew") from None
        if len(self._offsets) != len(self) + 1 or int(self._offsets[-1]) != len(self._lines):
            raise ArtifactError(f"the passages of {folder} are not whole", "build the index anew")

    def __len__(self) -> int:
        return len(self._hashes)

    def __iter__(self) -> Iterator[Passage]:
        return (self[ordinal] for ordinal in range(len(self)))

    def __getitem__(self, ordinal: int) -> Passage:
        if not 0 <= ordinal < len(self):
            raise IndexError(f"passage {ordinal} of {len(self)}")
        return _from_line(self._lines[int(self._offsets[ordinal]) : int(self._offsets[ordinal + 1])], self.folder)

    @property
    def has_images(self) -> bool:
        return (self.folder / IMAGES).exists()

    @property
    def files(self) -> list[str]:
        """Names of the files of this store."""
        return [PASSAGES, OFFSETS, IDS, *([IMAGES] if self.has_images else [])]

    def get(self, identifier: str) -> Passage | None:
        """The passage with this id, or None."""
        return self.get_many([identifier])[0]

    def get_many(self, identifiers: Sequence[str]) -> list[Passage | None]:
        """The passages with these ids in order, None where there is none; one look-up for all."""
        if not identifiers:
            return []
        hashes = id_hashes(identifiers)
        positions = np.searchsorted(self._hashes, hashes)
        near = np.minimum(positions, len(self) - 1)
        ordinals = self._ordinals[near]
        starts, ends = self._offsets[ordinals].tolist(), self._offsets[ordinals + np.uint64(1)].tolist()
        equal = (self._hashes[near] == hashes).tolist()
        found: list[Passage | None] = []
        for place, identifier in enumerate(identifiers):
            passage = _from_line(self._lines[starts[place] : ends[place]], self.folder) if equal[place] else None
            if passage is not None and passage.id != identifier:
                passage = self._next_of_same_hash(identifier, int(positions[place]) + 1)
            found.append(passage)
        return found

    def document(self, passage_id: str) -> list[Passage]:
        """All passages of the document that has this one, in order; empty if there is no such passage."""
        hashed = id_hashes([passage_id])[0]
        position = int(np.searchsorted(self._hashes, hashed))
        while position < len(self) and self._hashes[position] == hashed:
            ordinal = int(self._ordinals[position])
            if self[ordinal].id == passage_id:
                return document_around(self.__getitem__, ordinal, len(self))
            position += 1
        return []

    def _next_of_same_hash(self, identifier: str, position: int) -> Passage | None:
        """Two ids with one hash stand side by side."""
        hashed = self._hashes[position - 1]
        while position < len(self) and self._hashes[position] == hashed:
            passage = self[int(self._ordinals[position])]
            if passage.id == identifier:
                return passage
            position += 1
        return None


class _ImageFile:
    """Appends pictures to one file, each content once."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._path = path
        self._file: IO[bytes] | None = None
        self._places: dict[str, tuple[int, int]] = {}

    def add(self, image: Image) -> Image:
        """``image``, to be read from this file."""
        if image.sha256 not in self._places:
            self._file = self._file or self._path.open("wb")
            start, size = self._file.tell(), self._file.write(read_image(image))
            self._places[image.sha256] = (start, size)
        return Image(image.name, image.sha256, FilePart(self._path, *self._places[image.sha256]))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _IdTable:
    """Which id hashes were seen and where: sorted runs that are merged as they grow, 16 bytes an id."""

    def __init__(self) -> None:
        self._runs: list[Words] = []
        self._recent: dict[int, list[int]] = {}

    def add(self, hashed: int, ordinal: int) -> None:
        self._recent.setdefault(hashed, []).append(ordinal)
        if len(self._recent) >= _RUN:
            self._seal()

    def find(self, hashes: Words) -> list[list[int]]:
        """For each hash the ordinals at which it was seen: none for nearly every id of a sound corpus."""
        found = [list(self._recent.get(hashed, ())) for hashed in hashes.tolist()]
        for run in self._runs:
            first = np.searchsorted(run[0], hashes, side="left")
            last = np.searchsorted(run[0], hashes, side="right")
            for place in np.flatnonzero(last > first).tolist():
                found[place] += run[1][first[place] : last[place]].tolist()
        return found

    def sorted(self) -> Words:
        """uint64 [2, ids]: hashes in ascending order, and their ordinals."""
        self._seal()
        while len(self._runs) > 1:
            self._merge_last_two()
        return self._runs[0]

    def _seal(self) -> None:
        recent = [(hashed, ordinal) for hashed, ordinals in self._recent.items() for ordinal in ordinals]
        self._recent = {}
        self._runs.append(_by_hash(np.array(recent, np.uint64).reshape(-1, 2).T))
        while len(self._runs) > 1 and self._runs[-2].shape[1] <= 2 * self._runs[-1].shape[1]:
            self._merge_last_two()

    def _merge_last_two(self) -> None:
        later, earlier = self._runs.pop(), self._runs.pop()
        self._runs.append(_by_hash(np.concatenate([earlier, later], axis=1)))


def id_hashes(identifiers: Sequence[str]) -> Words:
    """64-bit hashes of ids; they narrow the search, the stored id decides."""
    digests = [
        hashlib.blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for identifier in identifiers
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8")


def _by_hash(entries: Words) -> Words:
    return np.ascontiguousarray(entries[:, np.argsort(entries[0], kind="stable")])


def _to_line(passage: Passage, image: Image | None) -> bytes:
    row: dict[str, Any] = {"id": passage.id, "title": passage.title, "text": passage.text}
    if image is not None and isinstance(image.content, FilePart):
        part = image.content
        row["image"] = {"name": image.name, "sha256": image.sha256, "start": part.start, "size": part.size}
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n"


def _from_line(line: bytes, folder: Path) -> Passage:
    try:
        row: dict[str, Any] = _decode(line.decode("utf-8"))
        image, known = None, row.get("image")
        if known is not None:
            image = Image(known["name"], known["sha256"], FilePart(folder / IMAGES, known["start"], known["size"]))
        return Passage(row["id"], row["title"], row["text"], image)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError(f"a passage of {folder} is damaged", "build the index anew") from None
