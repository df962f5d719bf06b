"""The layouts of training rows that stand in one row of a file each, as `rows` tells them, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from retrieval.passages import content_key
from retrieval.training.picture_rows import picture_of, targets
from retrieval.training.row import TrainingRow
from sleuth.artifacts import text_digest
from sleuth.rows import RawRow
from sleuth.types import Image, Passage


def reader_of(layout: str | None, first: RawRow) -> Callable[[RawRow], TrainingRow | None]:
    """What reads the rows of ``layout``; None: told from the ``first`` row. Raises DataError."""
    return READERS[layout or _detect(first)]


def row_of(values: Mapping[str, Any], where: str = "a row") -> TrainingRow:
    """The row that ``tevatron_row`` wrote; keys that it does not know are ignored. Raises DataError."""
    return tevatron(RawRow(where, 1, dict(values)))


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


def tevatron(row: RawRow) -> TrainingRow:
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


def colpali(row: RawRow) -> TrainingRow:
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
        image = _image(row, value.get("image"), f"{name}[{number}]") if isinstance(value, Mapping) else None
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


def _image(row: RawRow, value: object, name: str) -> Image | None:
    if value is None:
        return None
    called, digest = (value.get(key) if isinstance(value, Mapping) else None for key in ("name", "sha256"))
    image = Image(called, digest) if isinstance(called, str) and isinstance(digest, str) else picture_of(value)
    if image is None:
        raise row.error(f"the image of '{name}' is no picture", 'give a path, {"bytes", "path"} or {"name", "sha256"}')
    return image


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


READERS: Mapping[str, Callable[[RawRow], TrainingRow | None]] = {
    "tevatron": tevatron,
    "colpali": colpali,
    "hotpotqa": _hotpotqa,
    "musique": _musique,
}
