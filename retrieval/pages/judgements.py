"""Questions and judgements that come with a source go along with its pages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from retrieval.evaluation.judgements import read_qrels
from retrieval.pages.sources import shards_of
from retrieval.pages.vidore import picture_bytes, vidore_ids
from sleuth.errors import DataError
from sleuth.evidence import parent_id
from sleuth.files import PARQUET, parquet_rows, stem_of, suffix_of

CORPUS, DUPLICATES, NOTES = "corpus.jsonl", "duplicates.jsonl", "notes.jsonl"
QUERIES, QRELS = "queries.jsonl", "qrels"


def copy_judgements(source: str | Path, out: Path) -> bool:
    """Copy a BEIR folder's queries and judgements to ``out``, or write those of ViDoRe's rows; whether there are any.

    Ids are those of the source, also of a damaged page that is not there; a duplicate is judged by what stands for it.
    """
    path = Path(source)
    shards = shards_of(path)
    if not (_of_vidore(shards, out) if shards else _copied(path, out)):
        return False
    if standing := _standing_for(out):
        for file in (out / QRELS).iterdir():
            _judge_instead(file, standing)
    return True


def damaged_of(corpus: Path) -> frozenset[str]:
    """The ids of what was left out of a corpus of pages as damaged, as far as they are known; none of any other corpus.

    ``corpus`` is its folder, or a file in it.
    """
    notes = (corpus if corpus.is_dir() else corpus.parent) / NOTES
    try:
        return frozenset(str(row["damaged"]) for row in _rows(notes) if "damaged" in row)
    except (OSError, ValueError, TypeError):
        return frozenset()


def is_of(page: str, documents: AbstractSet[str]) -> bool:
    """Whether ``page`` is one of ``documents``, or a window or a page of one."""
    return not documents.isdisjoint((page, parent_id(page), page.rpartition("#")[0]))


def _copied(path: Path, out: Path) -> bool:
    folder = path if path.is_dir() else path.parent
    if not ((folder / QUERIES).is_file() and (folder / QRELS).is_dir()):
        return False
    if path.is_file() and stem_of(path) != "corpus":
        return False
    shutil.copyfile(folder / QUERIES, out / QUERIES)
    shutil.copytree(folder / QRELS, out / QRELS, dirs_exist_ok=True)
    return True


def _of_vidore(files: Sequence[Path], out: Path) -> bool:
    """One judgement a row that has a query: rows with the same query share it."""
    queries: dict[str, str] = {}
    judged: dict[str, dict[str, int]] = {}
    name = vidore_ids()
    for row in (row for file in files for row in parquet_rows(file)):
        query, data = row.get("query"), picture_bytes(row)
        page = name(row, data) if data is not None else None
        if page is not None and isinstance(query, str) and query.strip():
            judged.setdefault(queries.setdefault(query, f"q{len(queries)}"), {})[page] = 1
    if not judged:
        return False
    rows: list[dict[str, Any]] = [{"_id": identifier, "text": text} for text, identifier in queries.items()]
    (out / QUERIES).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    (out / QRELS).mkdir(exist_ok=True)
    _write_qrels(judged, out / QRELS / "test.tsv")
    return True


def _standing_for(out: Path) -> dict[str, list[str]]:
    """Of each document of which no page was kept, the documents whose pages stand for its own."""
    if not (out / DUPLICATES).is_file():
        return {}
    kept = {parent_id(row["_id"]) for row in _rows(out / CORPUS)}
    found: dict[str, list[str]] = {}
    for row in _rows(out / DUPLICATES):
        own, other = parent_id(row["id"]), parent_id(row["same_as"])
        if own not in kept and other not in found.setdefault(own, []):
            found[own].append(other)
    return found


def _judge_instead(file: Path, standing: Mapping[str, Sequence[str]]) -> None:
    """Write the judgements in ``file`` anew, if any is of a document that others stand for."""
    try:
        qrels = read_qrels(file)
    except DataError:
        return  # no judgements; who evaluates with them is told
    if not any(page in standing for judged in qrels.values() for page in judged):
        return
    changed: dict[str, dict[str, int]] = {}
    for query, judged in qrels.items():
        mine = changed.setdefault(query, {})
        for page, grade in judged.items():
            for other in standing.get(page, [page]):
                mine[other] = max(grade, mine.get(other, 0))
    _write_qrels(changed, file)


def _write_qrels(qrels: Mapping[str, Mapping[str, int]], file: Path) -> None:
    """In BEIR's layout, and in the format that the name of ``file`` says."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [(query, page, grade) for query, judged in qrels.items() for page, grade in judged.items()]
    fields: list[dict[str, Any]] = [dict(zip(("query-id", "corpus-id", "score"), row, strict=True)) for row in rows]
    if suffix_of(file) == PARQUET:
        pq.write_table(pa.Table.from_pylist(fields), file)
        return
    if suffix_of(file) in (".jsonl", ".json"):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in fields)
    else:
        text = "".join("\t".join(map(str, row)) + "\n" for row in [("query-id", "corpus-id", "score"), *rows])
    with pa.output_stream(str(file), compression="detect") as stream:
        stream.write(text.encode("utf-8"))


def _rows(file: Path) -> Iterator[dict[str, str]]:
    with file.open("rb") as lines:
        yield from map(json.loads, lines)
