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

A Tevatron passage may name a picture, by a path beside the file, or as ``"image": {"name", "sha256"}``, which tells it
apart; its bytes are then not there, but in the source's ``corpus``.
It may have a teacher's ``score``, and a row an ``instruction``, the name of its ``source``, a ``weight`` and the
``query_form`` that its query is written in.
"""

from __future__ import annotations

import functools
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retrieval.corpus import BadRow
from retrieval.corpus import read_rows as read_corpus
from retrieval.evaluation.judgements import read_qrels
from retrieval.images import find_image
from retrieval.passages import content_key
from retrieval.training.cloze import Pair, cloze_pairs, title_body_pairs
from retrieval.training.config import SourceSettings
from retrieval.training.picture_rows import by_id, is_unseen, located, named, targets
from sleuth.artifacts import atomic_write, text_digest
from sleuth.errors import ConfigError, DataError
from sleuth.rows import RawRow, read_rows
from sleuth.types import Image, Passage


@dataclass(frozen=True, slots=True)
class Labels:
    """What one teacher says of a query; it is drawn with probability ``share``."""

    positives: tuple[Passage, ...]
    negatives: tuple[Passage, ...]
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One query. ``positives`` are all its gold passages; ``answers`` are known for some data only.

    Scores are a teacher's, parallel to the passages; empty where there are none.
    ``labels``: teachers, one of which is drawn whenever the row is; ``positives`` are then also those of all of them.
    """

    id: str
    query: str
    positives: tuple[Passage, ...]
    negatives: tuple[Passage, ...] = ()
    answers: tuple[str, ...] = ()
    instruction: str = ""
    """What the query asks for, where it is not what the encoder's query prompt says."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """A teacher's score of passages, by content key; higher is better."""
    source: str = ""
    """The set that it is from, where there are several."""
    labels: tuple[Labels, ...] = ()
    weight: float = 1.0
    """How much it counts in the loss, beside the other rows."""
    query_form: str = ""
    """What its query is written in, which must be the encoder's; empty: it does not say."""
    share: float | None = None
    """Of its source in the mixture; None: sources are mixed as they come."""


def load_rows(sources: Sequence[SourceSettings]) -> list[TrainingRow]:
    """The rows of all sources in order. Raises DataError naming file and line of an invalid row."""
    mixed = any(source.weight is not None for source in sources)
    rows = [
        replace(
            row,
            instruction=row.instruction or source.instruction,
            source=_origin(row, number, len(sources)),
            share=source.weight or (1.0 if mixed else row.share),
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


def row_of(values: Mapping[str, Any], where: str = "a row") -> TrainingRow:
    """The row that ``tevatron_row`` wrote; keys that it does not know are ignored. Raises DataError."""
    return _tevatron(RawRow(where, 1, dict(values)))


def passages_of(rows: Iterable[TrainingRow]) -> list[Passage]:
    """Every distinct passage of the rows, in order of first appearance; equal content counts as the same passage."""
    found: dict[str, Passage] = {}
    for row in rows:
        for passage in (*row.positives, *row.negatives):
            found.setdefault(content_key(passage), passage)
    return list(found.values())


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
    read = _READERS[source.layout or _detect(raw[0])]
    rows = [_sound(one, row) for one in raw if (row := read(one)) is not None]
    if read in (_colpali, _tevatron):
        rows = _with_pictures(source, raw, rows)
    return _with_ids_of(rows, source.corpus) if source.corpus else rows


def _with_pictures(source: SourceSettings, raw: Sequence[RawRow], rows: Sequence[TrainingRow]) -> list[TrainingRow]:
    """The rows with the pictures that they name: of the source's corpus by id, or else of files beside the source's."""
    asked = {p.id for row in rows for p in (*row.positives, *row.negatives) if is_unseen(p.image)}
    known = _corpus(source.corpus, asked) if source.corpus and asked else None
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


def _detect(row: RawRow) -> str:
    marks = {"positive_passages": "tevatron", "pos_target": "colpali", "context": "hotpotqa", "paragraphs": "musique"}
    for key, layout in marks.items():
        if key in row.fields:
            return layout
    raise row.error(
        f"no known layout has the keys {', '.join(sorted(row.fields)) or '(none)'}",
        f"Tevatron rows have positive_passages, HotpotQA's context, MuSiQue's paragraphs; BEIR is a folder; "
        f"one of {', '.join(sorted(marks))} is told from these; layout: cloze or title_body asks about a corpus",
    )


def _tevatron(row: RawRow) -> TrainingRow:
    positives = _tevatron_passages(row, "positive_passages")
    if not positives:
        raise row.error("'positive_passages' is empty")
    negatives = _tevatron_passages(row, "negative_passages") if "negative_passages" in row.fields else []
    answers = row.fields.get("answers") or ()
    identifier = row.fields.get("query_id", row.number)
    scores = {content_key(p): score for p, score in (*negatives, *positives) if score is not None}
    return TrainingRow(
        str(identifier),
        row.text("query"),
        tuple(passage for passage, _ in positives),
        tuple(passage for passage, _ in negatives),
        tuple(str(answer) for answer in _list(row, answers, "answers")),
        _text_or_nothing(row, "instruction"),
        scores,
        _text_or_nothing(row, "source"),
        weight=_above_nothing(row, "weight") or 1.0,
        query_form=_text_or_nothing(row, "query_form"),
        share=_above_nothing(row, "share"),
    )


def _above_nothing(row: RawRow, name: str) -> float | None:
    value = row.fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise row.error(f"'{name}' is not a finite number above 0")
    return float(value)


def _colpali(row: RawRow) -> TrainingRow:
    positives = targets(row, "pos_target")
    if not positives:
        raise row.error("'pos_target' is empty")
    identifier = row.fields.get("query_id", row.number)
    return TrainingRow(str(identifier), row.text("query"), tuple(positives), tuple(targets(row, "neg_target")))


def _text_or_nothing(row: RawRow, name: str) -> str:
    return row.text(name) if row.fields.get(name) not in (None, "") else ""


def _tevatron_passages(row: RawRow, name: str) -> list[tuple[Passage, float | None]]:
    """The passages of one list, with their scores."""
    passages = []
    for number, value in enumerate(_list(row, row.fields.get(name), name)):
        image = _image(value.get("image")) if isinstance(value, Mapping) else None
        text = value.get("text") if isinstance(value, Mapping) else None
        text = "" if text is None and image is not None else text
        if not isinstance(text, str) or not (text.strip() or image):
            raise row.error(f"'{name}[{number}]' is not a passage with a text")
        title = value.get("title") or ""
        if not isinstance(title, str):
            raise row.error(f"the title of '{name}[{number}]' is not a string")
        passages.append((_passage(value.get("docid"), title, text, image), _score(row, value, f"{name}[{number}]")))
    return passages


def _score(row: RawRow, passage: Mapping[str, Any], name: str) -> float | None:
    value = passage.get("score")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise row.error(f"the score of '{name}' is not a finite number")
    return float(value)


def _image(value: object) -> Image | None:
    if isinstance(value, str) and value.strip():
        return named(value)
    name, digest = (value.get(key) if isinstance(value, Mapping) else None for key in ("name", "sha256"))
    return Image(name, digest) if isinstance(name, str) and isinstance(digest, str) else None


def _hotpotqa(row: RawRow) -> TrainingRow:
    wanted = {str(fact[0]) for fact in _list(row, row.fields.get("supporting_facts"), "supporting_facts") if fact}
    positives: list[Passage] = []
    negatives: list[Passage] = []
    for number, paragraph in enumerate(_list(row, row.fields.get("context"), "context")):
        try:
            title, sentences = paragraph
            text = "".join(sentences).strip()
        except (TypeError, ValueError):
            raise row.error(f"'context[{number}]' is not [title, sentences]") from None
        if text:
            (positives if title in wanted else negatives).append(_passage(None, title, text))
    return _released(row, "_id", positives, negatives, [str(row.fields.get("answer") or "")])


def _musique(row: RawRow) -> TrainingRow | None:
    if row.fields.get("answerable") is False:
        return None  # its paragraphs do not contain the answer
    positives: list[Passage] = []
    negatives: list[Passage] = []
    for number, paragraph in enumerate(_list(row, row.fields.get("paragraphs"), "paragraphs")):
        if not isinstance(paragraph, Mapping) or not isinstance(paragraph.get("paragraph_text"), str):
            raise row.error(f"'paragraphs[{number}]' has no paragraph_text")
        if not paragraph["paragraph_text"].strip():
            continue
        passage = _passage(None, str(paragraph.get("title") or ""), paragraph["paragraph_text"])
        (positives if paragraph.get("is_supporting") else negatives).append(passage)
    answers = [row.fields.get("answer"), *(row.fields.get("answer_aliases") or ())]
    return _released(row, "id", positives, negatives, [str(answer) for answer in answers if answer])


def _released(
    row: RawRow, id_key: str, positives: Sequence[Passage], negatives: Sequence[Passage], answers: Sequence[str]
) -> TrainingRow:
    if not positives:
        raise row.error("no paragraph is marked as supporting", "is this the test release, without judgements?")
    known = tuple(answer for answer in answers if answer)
    identifier = str(row.fields.get(id_key, row.number))
    return TrainingRow(identifier, row.text("question"), tuple(positives), tuple(negatives), known)


def _beir(source: SourceSettings) -> list[TrainingRow]:
    folder = Path(source.path)
    judged = read_qrels(folder / "qrels" / f"{source.split}.tsv")
    corpus = _corpus(source.corpus or folder, {pid for golds in judged.values() for pid in golds})
    texts = {str(row.fields.get("_id")): row for row in read_rows(folder / "queries.jsonl")}
    rows = []
    for query, grades in judged.items():
        if query not in texts:
            raise DataError(f"{folder}/qrels/{source.split}.tsv judges the query {query}, which queries.jsonl lacks")
        missing = next((pid for pid in grades if pid not in corpus), None)
        if missing is not None:
            raise DataError(f"{folder}/qrels/{source.split}.tsv judges the passage {missing}, which the corpus lacks")
        positives = tuple(corpus[pid] for pid, grade in grades.items() if grade > 0)
        negatives = tuple(corpus[pid] for pid, grade in grades.items() if grade <= 0)
        if positives:
            row = TrainingRow(query, texts[query].text("text"), positives, negatives)
            rows.append(_sound(texts[query], row))
    return rows


def _corpus(path: str | Path, wanted: set[str]) -> dict[str, Passage]:
    return {p.id: p for p in read_passages(path) if p.id in wanted}


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


def _list(row: RawRow, value: object, name: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise row.error(f"'{name}' is {'missing' if value is None else 'not a list'}")
    return value


def _passage(identifier: object, title: str, text: str, image: Image | None = None) -> Passage:
    """A passage without an id is identified by its content, so that it is the same wherever it occurs."""
    passage = Passage("", title, text, image)
    return replace(passage, id=text_digest(content_key(passage))[:16] if identifier is None else str(identifier))


def _tevatron_passage(passage: Passage, scores: Mapping[str, float]) -> dict[str, Any]:
    image = {} if passage.image is None else {"image": {"name": passage.image.name, "sha256": passage.image.sha256}}
    score = {"score": scores[content_key(passage)]} if content_key(passage) in scores else {}
    return {"docid": passage.id, "title": passage.title, "text": passage.text, **image, **score}


def tevatron_row(row: TrainingRow) -> dict[str, Any]:
    """A row of Tevatron's jsonl, in plain values."""
    values: dict[str, Any] = {
        "query_id": row.id,
        "query": row.query,
        "positive_passages": [_tevatron_passage(p, row.scores) for p in row.positives],
        "negative_passages": [_tevatron_passage(p, row.scores) for p in row.negatives],
    }
    more: dict[str, Any] = {"answers": list(row.answers), "instruction": row.instruction, "source": row.source}
    more |= {"weight": row.weight if row.weight != 1.0 else None, "query_form": row.query_form, "share": row.share}
    return values | {name: value for name, value in more.items() if value}


_OF_PASSAGES: dict[str | None, Callable[[Iterable[Passage], int | None], list[Pair]]] = {
    "cloze": cloze_pairs,
    "title_body": title_body_pairs,
}
_READERS: dict[str, Callable[[RawRow], TrainingRow | None]] = {
    "tevatron": _tevatron,
    "colpali": _colpali,
    "hotpotqa": _hotpotqa,
    "musique": _musique,
}
