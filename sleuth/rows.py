"""Rows of question files, each with its location, so that errors can name it.

A file is a JSON array, JSON lines, an object whose ``Data`` is the list (TriviaQA), a table with a header (``.csv``,
``.tsv``), each of them also as ``.gz`` or ``.zst``, or ``.parquet``. ``hf://owner/name[/config]/split`` is a dataset on
the Hugging Face hub, and so is ``owner/name`` where there is no such file.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sleuth.errors import DataError
from sleuth.files import (
    DELIMITERS,
    HUB,
    OTHER_ENCODING,
    PARQUET,
    RECODE,
    hub_dataset,
    on_hub,
    open_data,
    parquet_rows,
    stem_of,
    suffix_of,
    table_rows,
)


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as read; ``where`` is its file and line, ``number`` counts rows from 1."""

    where: str
    number: int
    fields: dict[str, Any]

    def error(self, message: str, hint: str = "") -> DataError:
        return DataError(f"{self.where}: {message}", hint)

    def text(self, *names: str) -> str:
        """The first of these fields that is present, which must be a non-blank string."""
        value = next((self.fields[name] for name in names if self.fields.get(name) is not None), None)
        if value is None:
            raise self.error(f"no '{names[0]}'")
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"'{names[0]}' is {'blank' if isinstance(value, str) else 'not a string'}")
        return value.strip()


def read_rows(source: str | Path, limit: int | None = None) -> list[RawRow]:
    """The first ``limit`` rows of ``source``, or all of them. No more than that is parsed.

    Raises DataError naming the file and line: missing, empty, not text, broken JSON, a row that is not an object.
    """
    where = str(source)
    found = _numbered(where, hub_dataset(where)) if on_hub(where) else _file_rows(Path(source))
    rows = list(itertools.islice(found, limit))
    if not rows:
        raise DataError(f"{where} has no rows", "an empty dataset cannot be used")
    return rows


def name_of(source: str | Path) -> str:
    """A short name for the source, used in the ids of rows that have none."""
    text = str(source)
    return text.removeprefix(HUB).replace("/", "-") if on_hub(text) else stem_of(text)


def _file_rows(path: Path) -> Iterator[RawRow]:
    if path.is_dir():
        raise DataError(f"{path} is a folder, not a file of questions", "give a file inside it")
    suffix = suffix_of(path)
    if suffix == PARQUET:
        yield from _numbered(path, parquet_rows(path))
        return
    with open_data(path) as file:
        start = file.peek(256)[:256].removeprefix(b"\xef\xbb\xbf").lstrip()
        if suffix in DELIMITERS:
            yield from _table_rows(path, file, DELIMITERS[suffix])
        elif start.startswith(b"["):
            yield from _array_rows(path, file.read())
        elif re.match(rb'\{\s*("(Data|Domain|Split|VerifiedEval|Version)"\s*:|$)', start):
            yield from _listed_rows(path, file.read())
        else:
            yield from _line_rows(path, file)


def _numbered(where: str | Path, rows: Iterable[Any]) -> Iterator[RawRow]:
    return (RawRow(f"{where}, row {number}", number, dict(row)) for number, row in enumerate(rows, start=1))


def _line_rows(path: Path, lines: Iterable[bytes]) -> Iterator[RawRow]:
    count = 0
    for line_number, line in enumerate(lines, start=1):
        where = f"{path}, line {line_number}"
        text = _decode(line.removeprefix(b"\xef\xbb\xbf") if line_number == 1 else line, where)
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: broken JSON: {error}", "use JSON lines, or one JSON array") from None
        count += 1
        yield _row(where, count, value)


def _array_rows(path: Path, content: bytes) -> Iterator[RawRow]:
    """The elements of a JSON array one by one: a half-gigabyte release is never held in memory as objects."""
    text = _decode(content.removeprefix(b"\xef\xbb\xbf"), str(path))
    decoder = json.JSONDecoder()
    position = _skip(text, text.index("[") + 1)
    for number in itertools.count(1):
        if number == 1 and text.startswith("]", position):
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            line = text.count("\n", 0, position) + 1
            raise DataError(f"{path}, row {number} (line {line}): broken JSON", "is the file cut off?") from None
        yield _row(f"{path}, row {number}", number, value)
        position = _skip(text, position)
        if text.startswith("]", position):
            return
        if not text.startswith(",", position):
            raise DataError(f"{path}: broken JSON after row {number}", "is the file cut off?")
        position = _skip(text, position + 1)


def _listed_rows(path: Path, content: bytes) -> Iterator[RawRow]:
    """The rows of an object that lists them under ``Data``, or the object itself if it is a row."""
    try:
        whole = json.loads(_decode(content.removeprefix(b"\xef\xbb\xbf"), str(path)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: broken JSON: {error}", "use JSON lines, or one JSON array") from None
    listed = whole.get("Data", [whole])
    if not isinstance(listed, list):
        raise DataError(f"{path}: 'Data' is not a list of rows")
    for number, value in enumerate(listed, start=1):
        yield _row(f"{path}, row {number}", number, value)


def _table_rows(path: Path, file: BinaryIO, delimiter: str) -> Iterator[RawRow]:
    for number, (line, fields) in enumerate(table_rows(file, delimiter), start=1):
        where = f"{path}, line {line}"
        if isinstance(fields, str):
            raise DataError(f"{where}: {fields}", "check its quotes and tabs")
        try:
            "".join(fields.values()).encode()
        except UnicodeEncodeError:
            raise DataError(f"{where}: {OTHER_ENCODING}", RECODE) from None
        yield RawRow(where, number, fields)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _row(where: str, number: int, value: object) -> RawRow:
    if not isinstance(value, dict):
        raise DataError(f"{where}: not a JSON object", "every row must be a {...}")
    return RawRow(where, number, value)


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: {OTHER_ENCODING} (byte {error.start})", RECODE) from None
