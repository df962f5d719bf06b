"""Queries and relevance judgements, in the layouts of BEIR and TREC.

======= ==================================================================
qrels   BEIR: ``query-id<tab>corpus-id<tab>score`` with a header; TREC: ``query 0 passage relevance``
queries BEIR ``{"_id", "text"}``, FlashRAG ``{"id", "question", "golden_answers"}``, or ``id<tab>text`` lines
======= ==================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sleuth.errors import DataError, did_you_mean
from sleuth.files import OTHER_ENCODING, RECODE, open_data, suffix_of
from sleuth.rows import RawRow, read_rows
from sleuth.types import Question

Qrels = dict[str, dict[str, int]]
"""Relevance by passage id, by query id; above 0 is relevant."""

_HEADING = "query-id"


def read_qrels(path: str | Path) -> Qrels:
    """The judgements of a file in either layout. Raises DataError naming the file and the line."""
    qrels: Qrels = {}
    for number, fields in split_lines(path):
        if number == 1 and fields[0] == _HEADING:
            continue
        if len(fields) == 4:
            query, _, passage, given = fields
        elif len(fields) == 3:
            query, passage, given = fields
        else:
            raise DataError(
                f"{path}, line {number}: a judgement cannot have {len(fields)} columns",
                "BEIR has query, passage, relevance; TREC has query, 0, passage, relevance",
            )
        judged = qrels.setdefault(query, {})
        relevance = max(0, _relevance(given, f"{path}, line {number}"))
        if judged.setdefault(passage, relevance) != relevance:
            raise DataError(f"{path}, line {number}: {query} {passage} already has a different judgement")
    if not any(relevance for judged in qrels.values() for relevance in judged.values()):
        raise DataError(f"{path} judges no passage as relevant", "is it a qrels file?")
    return qrels


def read_queries(path: str | Path) -> list[Question]:
    """Queries with any known answers. Raises DataError naming the file and the line."""
    where = Path(path)
    queries = list(_from_table(where) if suffix_of(where) in (".tsv", ".txt") else map(_from_row, read_rows(where)))
    seen: set[str] = set()
    for query in queries:
        if query.id in seen:
            raise DataError(f"{path}: duplicate query '{query.id}'")
        seen.add(query.id)
    if not queries:
        raise DataError(f"{path} has no queries")
    return queries


def split_lines(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, columns) of every non-blank line, split at tabs if there are any, else at white space."""
    for number, line in _lines(Path(path)):
        fields = [field.strip() for field in line.split("\t")] if "\t" in line else line.split()
        if not all(fields):
            raise DataError(f"{path}, line {number}: a column is empty")
        yield number, fields


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.exists():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"no file {path}", did_you_mean(path.name, near) if near else "")
    with open_data(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise DataError(f"{path}, line {number}: {OTHER_ENCODING}", RECODE) from None
            if text.strip():
                yield number, text.rstrip("\r\n")


def _relevance(given: str, where: str) -> int:
    try:
        return int(given)
    except ValueError:
        raise DataError(f"{where}: relevance is '{given}', not a whole number") from None


def _from_table(path: Path) -> Iterator[Question]:
    for number, line in _lines(path):
        identifier, tab, text = line.partition("\t")
        if not (tab and identifier.strip() and text.strip()):
            raise DataError(f"{path}, line {number}: not a query", "write id<tab>text")
        yield Question(identifier.strip(), text.strip(), ())


def _from_row(row: RawRow) -> Question:
    identifier = row.fields.get("_id", row.fields.get("id"))
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    if not isinstance(identifier, str) or not identifier.strip():
        raise row.error("no '_id' or 'id'")
    answers = row.fields.get("golden_answers", row.fields.get("answers", []))
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise row.error("'golden_answers' is not a list of strings")
    return Question(identifier.strip(), row.text("text", "question", "query"), tuple(answers))
