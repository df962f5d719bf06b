"""Streaming readers for passages in the layouts of the field: a file, a folder, or a dataset of the hub.

========= ===================================================================================
layout    one row
========= ===================================================================================
beir      ``{"_id": "...", "title": "...", "text": "..."}``
search_r1 ``{"id": "...", "contents": "\\"Title\\"\\ntext"}``
pyserini  ``{"id": "...", "contents": "..."}``
tevatron  ``{"docid": "...", "title": "...", "text": "..."}``
dpr       ``{"id": "...", "title": "...", "text": "..."}``
bright    ``{"id": "...", "content": "..."}``
========= ===================================================================================

A file holds JSON lines, or a table whose first line names the columns (``.tsv``, ``.csv``), both also as ``.gz`` or
``.zst``; or it is ``.parquet``.

In every layout ``"image"`` may name a picture, by a path relative to the corpus file; the text may then be empty.
It may also be empty, or null, beside a title: BEIR's sets have documents with nothing else.

A row that cannot be read becomes a `BadRow` with its file and line; what happens to it is decided by
whoever reads (see `retrieval.ingest`). Memory is one row, whatever the size of the corpus.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retrieval.images import find_image
from sleuth.errors import ConfigError, DataError, did_you_mean
from sleuth.files import (
    DELIMITERS,
    OTHER_ENCODING,
    PARQUET,
    hub_dataset,
    on_hub,
    open_data,
    parquet_rows,
    stem_of,
    suffix_of,
    table_rows,
)
from sleuth.types import Passage

MAX_ID_BYTES = 512
"""Lucene refuses terms beyond 32,766 bytes; an id that long is a column gone astray in any case."""

_SUFFIXES = (".jsonl", PARQUET, *DELIMITERS)


@dataclass(frozen=True, slots=True)
class PassageRow:
    """A passage and where it stands; ``line`` is the number of the row where rows are not lines."""

    passage: Passage
    file: Path | str
    line: int


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is no passage. ``reason`` is one of a few fixed phrases, so that it can be counted.

    ``id``: of the passage that it would be, empty where it does not say.
    """

    reason: str
    file: Path | str
    line: int
    id: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


_DECIDES = frozenset({"_id", "docid", "contents", "text", "content"})
"""Keys of which a row has one where it tells the layout of the corpus; a picture alone may be of any."""


class _Unfit(Exception):  # noqa: N818 (a verdict on a row, caught in this file)
    """This row is no passage."""


def read_rows(path: str | Path, layout: str | None = None) -> Iterator[PassageRow | BadRow]:
    """Every row of the corpus at ``path`` in order; blank lines are no rows.

    ``layout`` None: decided by the first row that can be read. Raises DataError when a file is absent
    or is not what its name says, ConfigError for an unknown layout.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"unknown corpus layout '{layout}'", did_you_mean(layout, LAYOUTS))
    chosen = LAYOUTS[layout] if layout else None
    for file, number, row in _raw_rows(path):
        fields: dict[str, Any] = {}
        try:
            fields = _fields(row)
            read = chosen or LAYOUTS[_detect(fields, file, number)]
            chosen = read if _DECIDES & fields.keys() else chosen
            yield PassageRow(_with_image(read(fields), fields, file), file, number)
        except _Unfit as verdict:
            yield BadRow(str(verdict), file, number, _id_of(fields))


def parse_line(line: bytes, file: Path, number: int, *, images: bool = True) -> Passage:
    """The passage of one row in whatever layout. Raises DataError that names file and line.

    ``images`` False: a picture that the row names is no part of it.
    """
    try:
        row = _fields(line)
        if not images:
            row.pop("image", None)
        return _with_image(LAYOUTS[_detect(row, file, number)](row), row, file)
    except _Unfit as verdict:
        raise DataError(f"{file}:{number}: {verdict}") from None


def corpus_files(path: str | Path) -> list[Path]:
    """The files of a corpus: ``path`` itself; in a folder ``corpus.*``, else all files of one format by name.

    A ``*`` in the last part of ``path`` stands for anything: ``documents/biology-*.parquet``.

    Formats are tried in the order JSON lines, Parquet, tables. A dataset of the hub has no files of its own.
    """
    if on_hub(path):
        return []
    found = Path(path)
    if "*" in found.name and (shards := sorted(found.parent.glob(found.name))):
        return shards
    if not found.exists():
        near = [p.name for p in found.parent.iterdir()] if found.parent.is_dir() else []
        raise DataError(f"no corpus at {path}", did_you_mean(found.name, near) if near else "")
    if not found.is_dir():
        return [found]
    files = sorted(p for p in found.iterdir() if suffix_of(p) in _SUFFIXES and p.is_file())
    by_format = [[p for p in files if suffix_of(p) == suffix] for suffix in _SUFFIXES]
    named = [p for fitting in by_format for p in fitting if stem_of(p) == "corpus"]
    if named:
        return named[:1]
    for fitting in by_format:
        if fitting:
            return fitting
    raise DataError(f"{found} holds no corpus.jsonl and no other *.jsonl, *.parquet or *.tsv", "name the file itself")


def image_files(path: str | Path) -> Iterator[Path]:
    """The files of the pictures that rows of the corpus name, whether they exist or not."""
    for file in corpus_files(path):
        for name in _image_names(file):
            if isinstance(name, str):
                yield file.parent / name


def _image_names(file: Path) -> Iterator[object]:
    if suffix_of(file) == PARQUET:
        yield from (row["image"] for row in parquet_rows(file, ["image"]))
        return
    for _, row in _file_rows(file):
        if isinstance(row, dict):
            if "image" not in row:  # a table has the same columns in every row
                return
            yield row["image"]
        # parsing every row of a corpus of texts would cost as much as indexing it
        elif isinstance(row, bytes) and b'"image"' in row:
            found = _parse(row)
            yield found.get("image") if isinstance(found, dict) else None


def _raw_rows(path: str | Path) -> Iterator[tuple[Path | str, int, dict[str, Any] | bytes | str]]:
    """(where, number, row): a row as columns, as a line of JSON, or what is wrong with it."""
    if on_hub(path):
        yield from ((str(path), number, dict(row)) for number, row in enumerate(hub_dataset(path), start=1))
    for file in corpus_files(path):
        yield from ((file, number, row) for number, row in _file_rows(file))


def _file_rows(file: Path) -> Iterator[tuple[int, dict[str, Any] | bytes | str]]:
    suffix = suffix_of(file)
    if suffix == PARQUET:
        yield from enumerate(parquet_rows(file), start=1)
        return
    with open_data(file) as stream:
        if suffix in DELIMITERS:
            for number, row in table_rows(stream, DELIMITERS[suffix]):
                if isinstance(row, dict) and row.get("image") == "":
                    row["image"] = None
                yield number, row
        else:
            if re.match(rb"\s*\[\s*\{", stream.peek(256)):
                raise DataError(f"{file} is one JSON array, not JSON lines", "write a row a line: jq -c '.[]' FILE")
            for number, line in enumerate(stream, start=1):
                stripped = line.strip()
                if stripped:
                    yield number, stripped.removeprefix(b"\xef\xbb\xbf") if number == 1 else stripped


def _fields(row: dict[str, Any] | bytes | str) -> dict[str, Any]:
    found = _parse(row) if isinstance(row, bytes) else row
    if isinstance(found, str):
        raise _Unfit(found)
    return found


def _parse(line: bytes) -> dict[str, Any] | str:
    """The object on a line, or what it is instead."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return OTHER_ENCODING
    except (ValueError, RecursionError):
        return "broken JSON"
    return row if isinstance(row, dict) else "not a JSON object"


def _id_of(row: dict[str, Any]) -> str:
    """The id in a row of whatever layout; empty if it has none."""
    named = next((row[key] for key in ("_id", "docid", "id") if key in row), None)
    return str(named) if isinstance(named, str | int) and not isinstance(named, bool) else ""


def _detect(row: dict[str, Any], file: Path | str, line: int) -> str:
    if "_id" in row:
        return "beir"
    if isinstance(row.get("contents"), str):
        head, newline, _ = row["contents"].partition("\n")
        return "search_r1" if newline and len(head) > 1 and head[0] == head[-1] == '"' else "pyserini"
    identified = next((key for key in ("docid", "id") if key in row), None)
    if identified and "text" in row:
        return "tevatron" if identified == "docid" else "dpr"
    if identified == "id" and isinstance(row.get("content"), str):
        return "bright"
    if identified == "id" and row.get("image") is not None:
        return "pyserini"
    if identified:
        raise _Unfit("no text")  # a faulty row of one of several layouts: a later row decides
    shown = ", ".join(key if len(key) < 40 else f"{key[:36]} ..." for key in sorted(map(str, row))[:8])
    raise DataError(
        f"{file}:{line}: no known corpus layout has the keys {shown or '(none)'}",
        'write rows {"_id" or "docid" or "id", "title", "text"} or {"id", "contents"}; '
        "the first line of a table names its columns: id, text, title",
    )


def _beir(row: dict[str, Any]) -> Passage:
    return _passage(row.get("_id"), row.get("title"), _text(row), row.get("image"))


def _search_r1(row: dict[str, Any]) -> Passage:
    contents = row.get("contents")
    if not isinstance(contents, str) or "\n" not in contents:
        title = row.get("title") if contents is None else ""
        return _passage(row.get("id"), title, contents, row.get("image"))
    title, _, text = contents.partition("\n")
    return _passage(row.get("id"), title.strip().removeprefix('"').removesuffix('"'), text, row.get("image"))


def _pyserini(row: dict[str, Any]) -> Passage:
    contents = row.get("contents", row.get("text"))  # a first row with only a picture may be of either layout
    return _passage(row.get("id"), row.get("title"), contents, row.get("image"))


def _tevatron(row: dict[str, Any]) -> Passage:
    return _passage(row.get("docid"), row.get("title"), _text(row), row.get("image"))


def _dpr(row: dict[str, Any]) -> Passage:
    return _passage(row.get("id"), row.get("title"), _text(row), row.get("image"))


def _bright(row: dict[str, Any]) -> Passage:
    return _passage(row.get("id"), row.get("title"), row.get("content"), row.get("image"))


def _text(row: dict[str, Any]) -> object:
    """A text of null is an empty one; a row without the key is of another layout, or broken."""
    return "" if row.get("text", 0) is None else row.get("text")


LAYOUTS: dict[str, Callable[[dict[str, Any]], Passage]] = {
    "beir": _beir,
    "search_r1": _search_r1,
    "pyserini": _pyserini,
    "tevatron": _tevatron,
    "dpr": _dpr,
    "bright": _bright,
}


def _with_image(passage: Passage, row: dict[str, Any], file: Path | str) -> Passage:
    if row.get("image") is None:
        return passage
    if isinstance(file, str):
        raise _Unfit("pictures of hub datasets are not read")
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
    if title is not None and not isinstance(title, str):
        raise _Unfit("title is not a string")
    if not text.strip() and image is None and not (title and title.strip()):
        raise _Unfit("empty text")
    passage = Passage(identifier, title or "", text)
    try:
        size = len(passage.id.encode("utf-8"))
        (passage.title + passage.text).encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which no encoding can hold
        escaped = "\udc80" <= error.object[error.start] <= "\udcff"  # how a table holds bytes that are not UTF-8
        raise _Unfit(OTHER_ENCODING if escaped else "half a surrogate pair") from None
    if size > MAX_ID_BYTES:
        raise _Unfit(f"id longer than {MAX_ID_BYTES} bytes")
    return passage
