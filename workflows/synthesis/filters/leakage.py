"""Nothing of a dev or test set may be written into training rows."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from sleuth.errors import DataError, SleuthError
from workflows.synthesis.filters.base import Bench
from workflows.synthesis.filters.config import LeakageSettings
from workflows.synthesis.ngrams import ngrams, words_of
from workflows.synthesis.writing import Written

log = logging.getLogger("sleuth.synthesize")

DATA = "SLEUTH_DATA"
_SPLITS = ("dev", "test", "validation", "valid")
_SUFFIXES = (".jsonl", ".json", ".tsv", ".csv", ".parquet", ".jsonl.gz")


class Leakage:
    def __init__(self, settings: LeakageSettings, bench: Bench) -> None:
        self._length = settings.words
        found = [path for given in settings.against for path in held_out_files(given, named=True)]
        if settings.present:
            data = os.environ.get(DATA)
            found += beside(bench.corpus) if bench.corpus else []
            found += held_out_files(Path(data)) if data else []
        self._sets: dict[str, int] = {}
        self._grams: set[str] = set()
        self._short: set[str] = set()
        for path in dict.fromkeys(path.resolve() for path in found):
            self._learn(path)
        log.info("leakage: %d questions of %d dev and test sets", sum(self._sets.values()), len(self._sets))

    def judge(self, rows: Sequence[Written]) -> list[str | None]:
        return [self._fault(row) for row in rows]

    def keep(self, rows: Sequence[Written]) -> None:
        """Nothing to remember."""

    def about(self) -> Mapping[str, object]:
        return {"sets": self._sets}

    def _learn(self, path: Path) -> None:
        count = 0
        for question in questions_of(path):
            words, count = words_of(question), count + 1
            if len(words) >= self._length:
                self._grams |= ngrams(words, self._length)
            elif words:
                self._short.add(" ".join(words))
        if count:
            self._sets[str(path)] = count

    def _fault(self, written: Written) -> str | None:
        words = words_of(written.row.query)
        if len(words) < self._length:
            return "a held-out question" if " ".join(words) in self._short else None
        grams = ngrams(words, self._length)
        shared = not grams.isdisjoint(self._grams) or " ".join(words) in self._short
        return "shares words with a held-out question" if shared else None


def held_out_files(place: Path, *, named: bool = False) -> Iterator[Path]:
    """Files with questions of a dev or test set, at or below ``place``: by name, or in BEIR's layout.

    ``named``: the user has named it, so that a file counts whatever it is called, and must exist.
    """
    if place.is_file():
        if named:
            yield place
        return
    if not place.is_dir():
        if named:
            raise DataError(f"no file or folder {place}", "filters.against names dev and test sets")
        return
    found = [path for path in sorted(place.rglob("*")) if _is_split(path)]
    if named and not found:
        raise DataError(f"{place} has no dev or test set", "name the file itself")
    yield from found


def beside(corpus: Path) -> list[Path]:
    """The dev and test sets in the folder of a corpus, and in the folders in it; no deeper, as it may hold anything."""
    folder = corpus if corpus.is_dir() else corpus.parent
    return [path for pattern in ("*", "*/*") for path in sorted(folder.glob(pattern)) if _is_split(path)]


def _is_split(path: Path) -> bool:
    """Whether the name is that of a dev or test set, and something is in it: a world may have no test questions."""
    stem = path.name.split(".")[0].lower()
    named = path.name.endswith(_SUFFIXES) and any(stem == split or stem.startswith(f"{split}_") for split in _SPLITS)
    if not named or not path.is_file():
        return False
    with path.open("rb") as file:
        heading, first = file.readline(), file.readline()
    return bool(first.strip() if path.suffix == ".tsv" else heading.strip())


def questions_of(path: Path) -> Iterator[str]:
    """The questions of a file of questions, or of the judgements in a ``qrels`` folder; none of anything else."""
    if path.parent.name == "qrels":
        queries = path.parent.parent / "queries.jsonl"
        if queries.is_file():
            yield from _judged(path, queries)
        return
    if path.suffix == ".tsv" and "question" not in _first_line(path):
        return
    try:
        yield from _texts(path)
    except SleuthError as error:
        log.warning("leakage: %s is not read: %s", path, error.message)


def _judged(qrels: Path, queries: Path) -> Iterator[str]:
    from retrieval.evaluation.judgements import read_qrels, read_queries

    judged = read_qrels(qrels)
    yield from (query.text for query in read_queries(queries) if query.id in judged)


def _texts(path: Path) -> Iterable[str]:
    from sleuth.rows import read_rows

    for row in read_rows(path):
        text = next((row.fields[name] for name in ("question", "query", "text") if row.fields.get(name)), None)
        if isinstance(text, str):
            yield text
        elif isinstance(text, list):  # several wordings
            yield from (one for one in text if isinstance(one, str))


def _first_line(path: Path) -> str:
    with path.open("rb") as file:
        return file.readline(10_000).decode("utf-8", "replace")
