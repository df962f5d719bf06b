"""Dev and test sets as they lie on disk: questions in files named so, judgements in BEIR's layouts, all of BRIGHT."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.evaluation.benchmarks import bright_golds, queries_of, set_of
from retrieval.evaluation.judgements import judgements_in, read_queries
from sleuth.errors import DataError
from sleuth.files import DELIMITERS, PARQUET, open_data, parquet_rows, stem_of, suffix_of
from sleuth.rows import read_rows

_SPLITS = {"dev", "test", "validation", "valid", "val"}
_OF_PASSAGES = {"corpus", "passages", "documents", "collection"}
"""Words of the name of a file that holds no questions, though it lies in the folder of a split."""
_IN_LINES = (".tsv", ".txt")
_QUESTIONS = (".jsonl", ".json", PARQUET, *DELIMITERS)
_JUDGEMENTS = (*_QUESTIONS, ".txt", ".qrels", ".qrel")
_FIELDS = ("question", "query", "text")
_OF_A_SET = ("corpus", "documents", "long_documents")
"""Folders of a corpus inside of the folder of its set."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A file of a dev or test set. ``judges``: the folder of the set, for a file of judgements."""

    path: Path
    judges: Path | None = None

    @property
    def questions(self) -> list[str]:
        """The questions: those that are judged, or all in the file. Raises DataError."""
        if self.judges is not None:
            return _judged(self.path, self.judges)
        return list(bright_golds(self.path)) or list(_texts(self.path))

    @property
    def golds(self) -> frozenset[str]:
        """Ids of passages that are gold for a question; none where the file does not say. Raises DataError."""
        if self.judges is None:
            return frozenset[str]().union(*bright_golds(self.path).values())
        judged = judgements_in(self.path).values()
        return frozenset(name for some in judged for name, grade in some.items() if grade > 0)


def named(place: Path) -> list[HeldOut]:
    """What the user names: a file, whatever it is called, or a folder with dev and test sets. Raises DataError."""
    if place.is_file():
        return [HeldOut(place, set_of(place))]
    if not place.is_dir():
        raise DataError(f"no file or folder {place}", "filters.against names dev and test sets")
    found = below(place)
    if not found:
        raise DataError(f"{place} has no dev or test set", "name the file itself")
    return found


def below(folder: Path) -> list[HeldOut]:
    """Every dev and test set in ``folder`` and the folders in it, however deep."""
    return _held_out(folder.rglob("*"))


def beside(corpus: Path) -> list[HeldOut]:
    """The dev and test sets in the folder of a corpus and in the folders in it; no deeper, as it may hold anything.

    A corpus in the folder ``corpus`` of a set, or ``documents`` of BRIGHT, lies in the folder of that set.
    """
    folder = (corpus if corpus.is_dir() else corpus.parent).absolute()
    roots = [folder, *([folder.parent] if folder.name in _OF_A_SET else [])]
    paths = [path for root in roots for pattern in ("*", "*/*") for path in root.glob(pattern)]
    paths += [path for root in roots for path in (root.parent / f"{root.name}-qrels").glob("*")]
    return _held_out(paths)


def _held_out(paths: Iterable[Path]) -> list[HeldOut]:
    """By name or that of the folder, or where BRIGHT has its examples, all of which are of its test; no empty file."""
    found = [HeldOut(path, set_of(path)) for path in sorted(paths) if _is_held_out(path)]
    return list({one.path.resolve(): one for one in found}.values())


def _is_held_out(path: Path) -> bool:
    words = set(re.split(r"[^a-z0-9]+", stem_of(path).lower()))
    folder = path.parent.name.lower()
    of_a_split = bool(words & _SPLITS) or (folder in _SPLITS and not words & _OF_PASSAGES)
    suffixes = _JUDGEMENTS if set_of(path) is not None else _QUESTIONS
    if suffix_of(path) not in suffixes or not (of_a_split or folder == "examples"):
        return False
    if not path.is_file() or path.stat().st_size == 0:
        return False
    return of_a_split or _is_of_bright(path)


def _is_of_bright(path: Path) -> bool:
    try:
        return bool(bright_golds(path))
    except DataError:
        return False


def _judged(qrels: Path, folder: Path) -> list[str]:
    judged = judgements_in(qrels)
    twin = qrels.with_name(qrels.name.replace("qrels", "queries"))  # MS MARCO: qrels.dev.tsv, queries.dev.tsv
    files = queries_of(folder) or ([twin] if twin != qrels and twin.is_file() else [])
    if judged and not files:
        raise DataError(
            f"{qrels} judges queries that are not beside it", f"they belong into {folder / 'queries.jsonl'}"
        )
    return [query.text for query in read_queries(*files) if query.id in judged] if judged else []


def _texts(path: Path) -> Iterator[str]:
    """Texts of the rows, or of ``id<tab>text`` lines; a row with a title and no question is a passage."""
    heading = _heading(path) if suffix_of(path) in _IN_LINES else list(_FIELDS)
    if not set(heading) & set(_FIELDS):
        yield from (query.text for query in (read_queries(path) if len(heading) == 2 else []))
        return
    for row in _rows(path):
        fields = _FIELDS[:2] if row.get("title") is not None else _FIELDS
        text = next((row[name] for name in fields if row.get(name)), None)
        if isinstance(text, str):
            yield text
        elif isinstance(text, list):  # several wordings
            yield from (one for one in text if isinstance(one, str))


def _rows(path: Path) -> Iterable[Mapping[str, Any]]:
    if suffix_of(path) == PARQUET:
        return parquet_rows(path, (*_FIELDS, "title"))  # the pages of a question set may be large
    return (row.fields for row in read_rows(path))


def _heading(path: Path) -> list[str]:
    with open_data(path) as file:
        line = file.readline(10_000).decode("utf-8-sig", "replace")
    return [cell.strip().strip('"').lower() for cell in line.split("\t")]
