"""Streaming readers for passages in the layouts of the field, plain or gzipped, a file or a folder.

========= ===================================================================================
layout    one row
========= ===================================================================================
beir      ``{"_id": "...", "title": "...", "text": "..."}``
search_r1 ``{"id": "...", "contents": "\\"Title\\"\\ntext"}``
pyserini  ``{"id": "...", "contents": "..."}``
========= ===================================================================================

In every layout ``"image"`` may name a picture, by a path relative to the corpus file; the text may then be empty.

A row that cannot be read becomes a `BadRow` with its file and line; what happens to it is decided by
whoever reads (see `retrieval.ingest`). Memory is one row, whatever the size of the corpus.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retrieval.images import find_image
from sleuth.errors import ConfigError, DataError, did_you_mean
from sleuth.types import Passage

MAX_ID_BYTES = 512
"""Lucene refuses terms beyond 32,766 bytes; an id that long is a column gone astray in any case."""

_SUFFIXES = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True, slots=True)
class PassageRow:
    """A passage and where it stands."""

    passage: Passage
    file: Path
    line: int


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is no passage. ``reason`` is one of a few fixed phrases, so that it can be counted."""

    reason: str
    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


class _Unfit(Exception):  # noqa: N818 (a verdict on a row, caught in this file)
    """This row is no passage."""


def read_rows(path: str | Path, layout: str | None = None) -> Iterator[PassageRow | BadRow]:
    """Every row of the corpus at ``path`` in order; blank lines are no rows.

    ``layout`` None: decided by the first row that can be read. Raises DataError when a file is absent
    or cannot be decompressed, ConfigError for an unknown layout.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"unknown corpus layout '{layout}'", did_you_mean(layout, LAYOUTS))
    chosen = LAYOUTS[layout] if layout else None
    for file in corpus_files(path):
        for number, line in _lines(file):
            try:
                row = _parse(line)
                read = chosen or LAYOUTS[_detect(row, file, number)]
                chosen = read if "_id" in row or "contents" in row else chosen  # a picture alone is of any layout
                yield PassageRow(_with_image(read(row), row, file), file, number)
            except _Unfit as verdict:
                yield BadRow(str(verdict), file, number)


def parse_line(line: bytes, file: Path, number: int, *, images: bool = True) -> Passage:
    """The passage of one row in whatever layout. Raises DataError that names file and line.

    ``images`` False: a picture that the row names is no part of it.
    """
    try:
        row = _parse(line)
        if not images:
            row.pop("image", None)
        return _with_image(LAYOUTS[_detect(row, file, number)](row), row, file)
    except _Unfit as verdict:
        raise DataError(f"{file}:{number}: {verdict}") from None


def corpus_files(path: str | Path) -> list[Path]:
    """The files of a corpus: ``path`` itself; in a folder corpus.jsonl[.gz], else every *.jsonl[.gz] by name."""
    found = Path(path)
    if not found.exists():
        near = [p.name for p in found.parent.iterdir()] if found.parent.is_dir() else []
        raise DataError(f"no corpus at {path}", did_you_mean(found.name, near) if near else "")
    if not found.is_dir():
        return [found]
    for suffix in _SUFFIXES:
        if (found / f"corpus{suffix}").is_file():
            return [found / f"corpus{suffix}"]
    files = sorted(p for p in found.iterdir() if p.name.endswith(_SUFFIXES) and p.is_file())
    if not files:
        raise DataError(f"{found} holds no corpus.jsonl and no other *.jsonl", "name the file itself")
    return files


def image_files(path: str | Path) -> Iterator[Path]:
    """The files of the pictures that rows of the corpus name, whether they exist or not."""
    for file in corpus_files(path):
        for _, line in _lines(file):
            if b'"image"' in line:  # parsing every row of a corpus of texts would cost as much as indexing it
                with contextlib.suppress(_Unfit):
                    name = _parse(line).get("image")
                    if isinstance(name, str):
                        yield file.parent / name


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines from 1, blank ones left out."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                stripped = line.strip()
                if stripped:
                    yield number, stripped.removeprefix(b"\xef\xbb\xbf") if number == 1 else stripped
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{file} is not a whole gzip file: {error}", "fetch or compress it again") from None
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from None


def _parse(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise _Unfit("not UTF-8") from None
    except (ValueError, RecursionError):
        raise _Unfit("broken JSON") from None
    if not isinstance(row, dict):
        raise _Unfit("not a JSON object")
    return row


def _detect(row: dict[str, Any], file: Path, line: int) -> str:
    if "_id" in row:
        return "beir"
    if isinstance(row.get("contents"), str):
        head, newline, _ = row["contents"].partition("\n")
        return "search_r1" if newline and len(head) > 1 and head[0] == head[-1] == '"' else "pyserini"
    if "id" in row and row.get("image") is not None:
        return "pyserini"
    if "id" in row and "text" not in row:
        raise _Unfit("no text")  # a faulty row of one of two layouts: a later row decides
    raise DataError(
        f"{file}:{line}: no known corpus layout has the keys {', '.join(sorted(row)) or '(none)'}",
        'write {"_id", "title", "text"} or {"id", "contents"} rows',
    )


def _beir(row: dict[str, Any]) -> Passage:
    return _passage(row.get("_id"), row.get("title"), row.get("text"), row.get("image"))


def _search_r1(row: dict[str, Any]) -> Passage:
    contents = row.get("contents")
    if not isinstance(contents, str) or "\n" not in contents:
        title = row.get("title") if contents is None else ""
        return _passage(row.get("id"), title, contents, row.get("image"))
    title, _, text = contents.partition("\n")
    return _passage(row.get("id"), title.strip().removeprefix('"').removesuffix('"'), text, row.get("image"))


def _pyserini(row: dict[str, Any]) -> Passage:
    return _passage(row.get("id"), row.get("title"), row.get("contents"), row.get("image"))


LAYOUTS: dict[str, Callable[[dict[str, Any]], Passage]] = {
    "beir": _beir,
    "search_r1": _search_r1,
    "pyserini": _pyserini,
}


def _with_image(passage: Passage, row: dict[str, Any], file: Path) -> Passage:
    if row.get("image") is None:
        return passage
    try:
        return replace(passage, image=find_image(row["image"], file.parent))
    except ValueError as reason:
        raise _Unfit(str(reason)) from None


def _passage(identifier: object, title: object, text: object, image: object) -> Passage:
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    if not isinstance(identifier, str) or not identifier.strip():
        raise _Unfit("no id")
    if text is None and image is not None:
        text = ""
    if text is None:
        raise _Unfit("no text")
    if not isinstance(text, str):
        raise _Unfit("text is not a string")
    if not text.strip() and image is None:
        raise _Unfit("empty text")
    if title is not None and not isinstance(title, str):
        raise _Unfit("title is not a string")
    passage = Passage(identifier, title or "", text)
    try:
        size = len(passage.id.encode("utf-8"))
        (passage.title + passage.text).encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair, which no encoding can hold
        raise _Unfit("not UTF-8") from None
    if size > MAX_ID_BYTES:
        raise _Unfit(f"id longer than {MAX_ID_BYTES} bytes")
    return passage
