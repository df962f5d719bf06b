"""Queries and relevance judgements, in the layouts of BEIR and TREC.

======= ==================================================================
qrels   BEIR: ``query-id<tab>corpus-id<tab>score`` with a header; TREC: ``query 0 passage relevance``
queries BEIR ``{"_id", "text"}``, FlashRAG ``{"id", "question", "golden_answers"}``, or ``id<tab>text`` lines
======= ==================================================================

BEIR's may also be JSON lines or Parquet with the same columns, or a dataset of the hub.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from sleuth.errors import DataError, did_you_mean
from sleuth.files import OTHER_ENCODING, PARQUET, RECODE, on_hub, open_data, suffix_of
from sleuth.rows import RawRow, read_rows
from sleuth.types import Question

Qrels = dict[str, dict[str, int]]
"""Relevance by passage id, by query id; above 0 is relevant."""

_HEADING = "query-id"


def read_qrels(*paths: str | Path) -> Qrels:
    """The judgements of files in any of the layouts. Raises DataError naming the file and the line.

    Also where no passage is relevant, as no retriever can be measured by that.
    """
    qrels = judgements_in(*paths)
    if not any(relevance for judged in qrels.values() for relevance in judged.values()):
        raise DataError(f"{paths[0]} judges no passage as relevant", "is it a qrels file?")
    return qrels


def judgements_in(*paths: str | Path) -> Qrels:
    """The same, whatever they say: there may be none, or none of a passage that is relevant."""
    qrels: Qrels = {}
    for path in paths:
        in_columns = on_hub(path) or suffix_of(path) in (".jsonl", ".json", PARQUET)
        for where, query, passage, given in _from_columns(path) if in_columns else _from_lines(path):
            judged = qrels.setdefault(query, {})
            relevance = max(0, _relevance(given, where))
            if judged.setdefault(passage, relevance) != relevance:
                raise DataError(f"{where}: {query} {passage} already has a different judgement")
    return qrels


def read_queries(*paths: str | Path) -> list[Question]:
    """Queries with any known answers. Raises DataError naming the file and the line."""
    queries: dict[str, Question] = {}
    for path in paths:
        in_lines = not on_hub(path) and suffix_of(path) in (".tsv", ".txt")
        for query in _from_table(Path(path)) if in_lines else map(_from_row, read_rows(path)):
            if query.id in queries:
                raise DataError(f"{path}: duplicate query '{query.id}'")
            queries[query.id] = query
    if not queries:
        raise DataError(f"{paths[0]} has no queries")
    return list(queries.values())


def _from_lines(path: str | Path) -> Iterable[tuple[str, str, str, object]]:
    """(where, query, passage, relevance) of every line."""
    for number, fields in split_lines(path):
        if number == 1 and fields[0] == _HEADING:
            continue
        if len(fields) not in (3, 4):
            raise DataError(
                f"{path}, line {number}: a judgement cannot have {len(fields)} columns",
                "BEIR has query, passage, relevance; TREC has query, 0, passage, relevance",
            )
        yield f"{path}, line {number}", fields[0], fields[-2], fields[-1]


def _from_columns(path: str | Path) -> Iterable[tuple[str, str, str, object]]:
    for row in read_rows(path):
        missing = [name for name in (_HEADING, "corpus-id", "score") if row.fields.get(name) is None]
        if missing:
            raise row.error(f"no '{missing[0]}'", "a judgement has query-id, corpus-id and score")
        yield row.where, str(row.fields[_HEADING]), str(row.fields["corpus-id"]), row.fields["score"]


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


def _relevance(given: object, where: str) -> int:
    try:
        return int(str(given).removesuffix(".0"))  # Parquet often holds 1.0
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
    return Question(identifier.strip(), row.text("text", "question", "query"), tuple(answers), kind=level_of(row))


def level_of(row: RawRow) -> str:
    """What a query asks of a retriever, where its row says so: ``level``, in BRIGHT-like sets keyword, semantic or
    reasoning, in small letters. It may stand in ``metadata``, also where that is JSON in a text; empty where there is
    none.
    """
    return _level(row.fields.get("level")) or _level(_inside(row.fields.get("metadata")).get("level"))


def _level(value: object) -> str:
    return str(value).strip().lower() if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _inside(metadata: object) -> dict[str, object]:
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except (ValueError, RecursionError):
            return {}
    return metadata if isinstance(metadata, dict) else {}
