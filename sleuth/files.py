"""Opens data as the field keeps it: plain, gzip or zstd text, tables, Parquet, and datasets on the Hugging Face hub.

Everything is read as a stream, whatever its size. What cannot be read is named by its first bytes: "is a zip archive".
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sleuth.errors import DataError

HUB = "hf://"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET = ".parquet"

_COMPRESSED = {".gz": "a gzip file", ".zst": "a zstd file"}
_TEXT = (".json", ".jsonl", ".ndjson", ".txt")
_BARE_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HEAD = 512
_MAX_FIELD = 1 << 24
"""Characters in a field of a table. A stray quote would otherwise read the rest of the file into one field."""

_UNPACK = "unpack it"
_CONVERT = "convert it: iconv -f UTF-16 -t UTF-8 FILE"
_CONVERT_32 = "convert it: iconv -f UTF-32 -t UTF-8 FILE"
_EXPORT = "write its rows as JSON lines"
_FETCH = "fetch the file itself"
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "a gzip file", "let its name end in .gz"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "let its name end in .zst"),
    (b"PAR1", "a Parquet file", "let its name end in .parquet"),
    (b"BZh", "a bzip2 file", _UNPACK),
    (b"\xfd7zXZ\x00", "an xz file", _UNPACK),
    (b"\x04\x22\x4d\x18", "an lz4 file", _UNPACK),
    (b"PK\x03\x04", "a zip archive", _UNPACK),
    (b"PK\x05\x06", "an empty zip archive", _FETCH),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"SQLite format 3\x00", "an SQLite database", _EXPORT),
    (b"ARROW1", "an Arrow file", _EXPORT),
    (b"\xff\xff\xff\xff", "an Arrow stream", _EXPORT),
    (b"\x89HDF\r\n", "an HDF5 file", _EXPORT),
    (b"\x93NUMPY", "a numpy array", _EXPORT),
    (b"Obj\x01", "an Avro file", _EXPORT),
    (b"%PDF-", "a PDF", _EXPORT),
    *((bytes([0x80, version]), "a Python pickle", _EXPORT) for version in (2, 3, 4, 5)),
    (b"\xff\xfe\x00\x00", "UTF-32 text", _CONVERT_32),
    (b"\x00\x00\xfe\xff", "UTF-32 text", _CONVERT_32),
    (b"\xff\xfe", "UTF-16 text", _CONVERT),
    (b"\xfe\xff", "UTF-16 text", _CONVERT),
    *((start, "UTF-16 text", _CONVERT) for start in (b'{\x00"\x00', b'\x00{\x00"', b"[\x00{\x00", b"\x00[\x00{")),
    (b"version https://git-lfs.github.com/", "a Git LFS pointer", f"{_FETCH}: git lfs pull"),
)
_MARKUP: tuple[tuple[bytes, str, str], ...] = (
    (b"<!doctype html", "a web page", _FETCH),
    (b"<html", "a web page", _FETCH),
    (b"<?xml", "XML", _EXPORT),
)
"""In any case, after any blank lines."""

OTHER_ENCODING = "text in another encoding than UTF-8"
RECODE = "convert it; if it is Latin-1: iconv -f LATIN1 -t UTF-8 FILE"


def suffix_of(path: str | Path) -> str:
    """The suffix that tells the format, in lower case: ``.jsonl`` of ``corpus.jsonl.gz``."""
    return Path(_uncompressed(path)).suffix.lower()


def stem_of(path: str | Path) -> str:
    """The name without the suffixes of format and compression."""
    return Path(_uncompressed(path)).stem


def is_compressed(path: str | Path) -> bool:
    return Path(path).suffix.lower() in _COMPRESSED


def _uncompressed(path: str | Path) -> str:
    name = Path(path).name
    return name[: -len(Path(name).suffix)] if is_compressed(name) else name


@contextmanager
def open_data(path: Path, *, markup: bool = False) -> Iterator[io.BufferedReader]:
    """The bytes of a text file, decompressed as its suffix says; ``markup`` True: it may be XML or HTML.

    Raises DataError, also while it is being read: absent, unreadable, cut off, or not text but something known.
    """
    packed = _COMPRESSED.get(path.suffix.lower())
    try:
        with ExitStack() as stack:
            file = stack.enter_context(path.open("rb"))
            if packed is None:
                _check_head(path, file, markup=markup)
                yield file
                return
            _check_head(path, file, packed)
            stream = stack.enter_context(io.BufferedReader(_decompressed(file, packed), 1 << 20))
            _check_head(path, stream, where=f"the content of {path}", markup=markup)
            yield stream
    except FileNotFoundError:
        raise DataError(f"no file {path}", "check the path; SLEUTH_DATA names the data folder in configs") from None
    except (EOFError, zlib.error, OSError) as error:
        if packed is None or getattr(error, "errno", None) is not None:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"cannot read {path}: {reason}") from None
        whole = packed.replace("a ", "a whole ", 1)
        raise DataError(f"{path} is not {whole}: {error}", "fetch or compress it again") from None


def _decompressed(file: BinaryIO, packed: str) -> Any:
    if packed == "a gzip file":
        return gzip.GzipFile(fileobj=file)
    import pyarrow as pa

    return pa.CompressedInputStream(file, "zstd")


def _check_head(
    path: Path, file: io.BufferedReader, wanted: str | None = None, where: str = "", markup: bool = False
) -> None:
    head = file.peek(_HEAD)
    what, hint = _known(head, () if markup else _MARKUP)
    if wanted and not what and head[:4].isascii() and head[:4].decode().isprintable():
        what = "text" if head else ""
    if what and what != wanted:
        instead = f", not {wanted}" if wanted else ""
        raise DataError(f"{where or path} is {what}{instead}", hint if wanted is None else "rename or unpack it")


def _known(head: bytes, markup: Sequence[tuple[bytes, str, str]] = _MARKUP) -> tuple[str, str]:
    """What the first bytes of a file give away, and what to do about it; blank if it may be text."""
    start = head.lstrip()[:16].lower()
    found = [(what, hint) for magic, what, hint in _MAGIC if head.startswith(magic)]
    found += [(what, hint) for magic, what, hint in markup if start.startswith(magic)]
    if head[257:262] == b"ustar":
        found.insert(0, ("a tar archive", _UNPACK))
    if b"\x00" in head[:_HEAD]:  # no text has one
        found.append((f"binary data that begins with the bytes {head[:8].hex(' ')}", _EXPORT))
    return found[0] if found else ("", "")


def table_rows(stream: BinaryIO, delimiter: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line, row) of a table whose first line names its columns; what is wrong with a row in its place.

    Quotes are those of the csv module, as in DPR's ``psgs_w100.tsv``. Bytes that are not UTF-8 become lone surrogates.
    """
    csv.field_size_limit(_MAX_FIELD)
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    table = csv.reader(text, delimiter=delimiter, strict=True)  # a stray quote would silently join rows
    names: list[str] | None = None
    while True:
        line = table.line_num + 1
        try:
            cells = next(table, None)
        except csv.Error as error:
            yield line, f"broken table: {error}"
            continue
        if cells is None:
            return
        if names is None:
            names = cells or None
        elif cells and len(cells) != len(names):
            yield line, "the number of columns differs from the header's"
        elif cells:
            yield line, dict(zip(names, cells, strict=True))


def parquet_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, or those of ``columns`` that it has (no rows if it has none of them)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:
            what, _ = _known(file.read(_HEAD))
        if what != "a Parquet file":
            raise DataError(f"{path} is {what or 'no Parquet file'}", "let its name say what it is, or fetch it again")
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as table:  # not whole row groups at once
            chosen = None if columns is None else [name for name in columns if name in table.schema_arrow.names]
            if chosen != []:
                for batch in table.iter_batches(1024, columns=chosen):
                    yield from batch.to_pylist()
    except FileNotFoundError:
        raise DataError(f"no file {path}", "check the path; SLEUTH_DATA names the data folder in configs") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path}: {error}", "is the file cut off?") from None


def on_hub(source: str | Path) -> bool:
    """Whether ``source`` names a dataset of the hub: ``hf://...``, or ``owner/name`` where there is no such path."""
    text = str(source)
    if text.startswith(HUB):
        return True
    named = suffix_of(text) in (*_TEXT, *DELIMITERS, PARQUET) or is_compressed(text)
    return bool(_BARE_NAME.fullmatch(text)) and not named and not Path(text).exists() and not Path(text).parent.is_dir()


def local_or_hub(source: str | Path) -> str:
    """``source`` as text: a path in its normal form, the name of a dataset as it is."""
    return str(source) if on_hub(source) else str(Path(source))


def hub_dataset(source: str | Path) -> Any:
    """The dataset split that ``source`` names, as the ``datasets`` library opens it.

    ``owner/name`` alone will do where the dataset has one split. Raises DataError naming what is missing.
    """
    name = str(source)
    parts = name.removeprefix(HUB).split("/")
    if len(parts) not in (2, 3, 4) or not all(parts):
        raise DataError(
            f"'{name}' does not name a dataset split", "write hf://owner/name/split or hf://owner/name/config/split"
        )
    from datasets import load_dataset

    bare = "/".join(parts[:2])
    try:
        if len(parts) > 2:
            return load_dataset(bare, parts[2] if len(parts) == 4 else None, split=parts[-1])
        found = load_dataset(bare)
    except Exception as error:  # noqa: BLE001 - the library raises many kinds of errors, all of them the user's to fix
        absent = "" if name.startswith(HUB) else f"there is no file {name}, and "
        reason = " ".join(str(error).split())
        raise DataError(
            f"{absent}cannot load {name if not absent else HUB + name}: {reason}",
            "is the name right, and is the hub reachable?",
        ) from None
    if not isinstance(found, Mapping):
        return found
    if len(found) != 1:
        raise DataError(f"{name} has the splits {', '.join(found)}", f"name one: {HUB}{bare}/{next(iter(found), '')}")
    return next(iter(found.values()))
