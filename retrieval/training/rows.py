"""Training rows of a retriever: a query with passages that answer it and passages that do not.

========== =============================================================================================
layout     one row
========== =============================================================================================
tevatron   ``{"query_id", "query", "positive_passages": [{"docid", "title", "text"}], "negative_passages"}``
beir       a folder with ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv``
hotpotqa   HotpotQA's release: paragraphs of ``context`` in ``supporting_facts`` are positive, others negative
musique    MuSiQue's release: paragraphs with ``is_supporting`` are positive, others negative
colpali    colpali-engine's ``{"query", "pos_target", "neg_target"}``, whose targets are pictures (`picture_rows`)
cloze      a corpus without questions: a sentence is the query for the passage that it was taken from
title_body a corpus without questions: a title is the query for its text
========== =============================================================================================

A Tevatron passage may have a picture, as a path beside the file, as ``"image": {"bytes", "path"}``, of which one may be
null, or as ``{"name", "sha256"}``, which tells it apart; its bytes are then not there, but in the source's ``corpus``.
It may have a teacher's ``score``, and a row an ``instruction``, the name of its ``source``, a ``weight`` and the
``query_form`` that its query is written in.
"""

from __future__ import annotations

import functools
import json
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from retrieval.corpus import BadRow
from retrieval.corpus import read_rows as read_corpus
from retrieval.evaluation.judgements import read_qrels
from retrieval.images import find_image
from retrieval.pages.judgements import damaged_of, is_of
from retrieval.passages import content_key
from retrieval.training.cloze import Pair, cloze_pairs, title_body_pairs
from retrieval.training.config import SourceSettings
from retrieval.training.picture_rows import by_id, is_unseen, located
from retrieval.training.row import TrainingRow, passages_of
from retrieval.training.row_layouts import colpali, reader_of, tevatron, tevatron_row
from sleuth.artifacts import atomic_write
from sleuth.errors import ConfigError, DataError
from sleuth.evidence import parent_id
from sleuth.rows import RawRow, read_rows
from sleuth.types import Passage

log = logging.getLogger("sleuth.train_retriever")


def load_rows(sources: Sequence[SourceSettings]) -> list[TrainingRow]:
    """The rows of all sources in order. Raises DataError naming file and line of an invalid row.

    One source alone is no mixture: its rows keep what its file says, whatever its weight is.
    """
    mixed = len(sources) > 1 and any(source.weight is not None for source in sources)
    rows = [
        replace(
            row,
            instruction=row.instruction or source.instruction,
            source=_origin(row, number, len(sources)),
            share=(source.weight or 1.0) if mixed else row.share,
        )
        for number, source in enumerate(sources)
        for row in _capped(_load(source), source.cap, number)
    ]
    if not rows:
        raise DataError("there is nothing to train on", "give at least one source that has rows")
    return rows


def _capped(rows: list[TrainingRow], cap: int | None, number: int) -> list[TrainingRow]:
    """``cap`` of the rows in their order, the same in every run; all of them where there are no more."""
    if cap is None or len(rows) <= cap:
        return rows
    chosen = random.Random(f"{number}/cap").sample(range(len(rows)), cap)
    return [rows[place] for place in sorted(chosen)]


def _origin(row: TrainingRow, number: int, sources: int) -> str:
    """The row's own source; where several are read, they are told apart by their number too."""
    return "/".join([*([str(number)] if sources > 1 else []), *([row.source] if row.source else [])])


def write_rows(rows: Iterable[TrainingRow], path: str | Path) -> None:
    """Rows as Tevatron jsonl, which ``load_rows`` reads back."""
    atomic_write(path, "".join(json.dumps(tevatron_row(row), ensure_ascii=False) + "\n" for row in rows))


def _load(source: SourceSettings) -> list[TrainingRow]:
    if source.layout in _OF_PASSAGES:
        pairs = _OF_PASSAGES[source.layout](read_passages(source.path), source.limit)
        return [TrainingRow(f"{source.layout}-{passage.id}", query, (passage,)) for query, passage in pairs]
    if Path(source.path).is_dir():
        if source.layout not in (None, "beir"):
            raise ConfigError(f"{source.path} is a folder, which only the layout beir reads", "give a file inside it")
        return _beir(source)[: source.limit]
    if source.layout == "beir":
        raise ConfigError(f"{source.path} is a file, and the layout beir is a folder", "leave layout out")
    raw = read_rows(source.path, source.limit)
    read = reader_of(source.layout, raw[0])
    rows = [_sound(one, row) for one in raw if (row := read(one)) is not None]
    if read in (colpali, tevatron):
        rows = _with_pictures(source, raw, rows)
    return _with_ids_of(rows, source.corpus) if source.corpus else rows


def _with_pictures(source: SourceSettings, raw: Sequence[RawRow], rows: Sequence[TrainingRow]) -> list[TrainingRow]:
    """The rows with the pictures that they name: of the source's corpus by id, or else of files beside the source's."""
    asked = {p.id for row in rows for p in (*row.positives, *row.negatives) if is_unseen(p.image)}
    known = {p.id: p for p in read_passages(source.corpus) if p.id in asked} if source.corpus and asked else None
    folder = Path(source.path).parent
    find = functools.cache(find_image)  # many rows name the same picture

    def found(one: RawRow) -> Callable[[Passage], Passage]:
        return lambda p: located(one, p, folder, find) if known is None else by_id(one, p, known)

    return [_with_passages(row, found(one)) for one, row in zip(raw, rows, strict=True)] if asked else list(rows)


def _sound(read: RawRow, row: TrainingRow) -> TrainingRow:
    """The row, whose texts can be written and tokenized."""
    texts = (text for p in (*row.positives, *row.negatives) for text in (p.id, p.title, p.text))
    try:
        for text in (row.query, row.instruction, *row.answers, *texts):
            text.encode()
    except UnicodeEncodeError:
        raise read.error("a text has half a surrogate pair, which no encoding can hold", "mend or drop it") from None
    return row


def _beir(source: SourceSettings) -> list[TrainingRow]:
    folder = Path(source.path)
    judged = read_qrels(folder / "qrels" / f"{source.split}.tsv")
    corpus = _corpus(source.corpus or folder, {pid for golds in judged.values() for pid in golds})
    texts = {str(row.fields.get("_id")): row for row in read_rows(folder / "queries.jsonl")}
    missing = sorted({pid for grades in judged.values() for pid in grades if pid not in corpus})
    damaged = damaged_of(Path(source.corpus or folder)) if missing else frozenset()
    if unknown := next((pid for pid in missing if not is_of(pid, damaged)), None):
        raise DataError(f"{folder}/qrels/{source.split}.tsv judges the passage {unknown}, which the corpus lacks")
    if missing:
        log.warning("%s: %d judged pages were damaged and are not in the corpus", folder, len(missing))
    rows = []
    for query, grades in judged.items():
        if query not in texts:
            raise DataError(f"{folder}/qrels/{source.split}.tsv judges the query {query}, which queries.jsonl lacks")
        positives = tuple(passage for pid, grade in grades.items() if grade > 0 for passage in corpus.get(pid, ()))
        negatives = tuple(passage for pid, grade in grades.items() if grade <= 0 for passage in corpus.get(pid, ()))
        if positives:
            row = TrainingRow(query, texts[query].text("text"), positives, negatives)
            rows.append(_sound(texts[query], row))
    return rows


def _corpus(path: str | Path, wanted: set[str]) -> dict[str, list[Passage]]:
    """By id, the passages of a corpus that are ``wanted``, each of them one, or the pages or windows that it became."""
    found: dict[str, list[Passage]] = {}
    for passage in read_passages(path):
        name = passage.id if passage.id in wanted else parent_id(passage.id)
        if name in wanted:
            found.setdefault(name, []).append(passage)
    return found


def _with_ids_of(rows: Sequence[TrainingRow], corpus: str | Path) -> list[TrainingRow]:
    """The same rows, with passages replaced by those of ``corpus`` with the same title, text and, if known, picture."""
    key_of: Callable[[Passage], str] = lambda p: content_key(replace(p, text=p.text.strip()))
    mine = set(map(key_of, passages_of(rows)))
    known: dict[str, Passage] = {}
    for passage in read_passages(corpus):
        ways = [passage, replace(passage, image=None)] if passage.image and passage.text.strip() else [passage]
        known.update((key, passage) for key in map(key_of, ways) if key in mine)
    swap: Callable[[Passage], Passage] = lambda p: known.get(key_of(p), p)
    return [_with_passages(row, swap) for row in rows]


def _with_passages(row: TrainingRow, swap: Callable[[Passage], Passage]) -> TrainingRow:
    own = (*row.negatives, *row.positives)  # of a passage that stands on both sides the positive's score counts
    scores = {content_key(swap(p)): row.scores[content_key(p)] for p in own if content_key(p) in row.scores}
    positives, negatives = tuple(map(swap, row.positives)), tuple(map(swap, row.negatives))
    return replace(row, positives=positives, negatives=negatives, scores=scores)


def read_passages(corpus: str | Path) -> Iterator[Passage]:
    """The passages of a corpus in any layout. Raises DataError at the first invalid row."""
    for row in read_corpus(corpus):
        if isinstance(row, BadRow):
            raise DataError(str(row), "fix the corpus")
        yield row.passage


_OF_PASSAGES: dict[str | None, Callable[[Iterable[Passage], int | None], list[Pair]]] = {
    "cloze": cloze_pairs,
    "title_body": title_body_pairs,
}
