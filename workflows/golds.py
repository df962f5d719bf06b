"""Whether the gold passages that questions list by id are among the passages searched."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from sleuth.errors import DataError
from sleuth.evidence import window_id
from sleuth.protocols import Retriever
from sleuth.types import Question
from workflows.config import DataSettings
from workflows.wiring import read_questions, read_source

log = logging.getLogger("sleuth.run")


def check_golds(questions: Sequence[Question], retriever: Retriever, searched: str) -> None:
    """Warn of gold passages that ``searched`` does not have, neither whole nor in windows.

    Raises DataError if it has none of a file: then nothing could be found. Nothing is said where ids cannot be looked
    up, as in a service elsewhere.
    """
    from retrieval.documents import find_passages

    for file, names in _by_file(questions).items():
        found = find_passages(retriever, names)
        if found is None:
            return
        lost = [name for name, passage in zip(names, found, strict=True) if passage is None]
        windows = find_passages(retriever, [window_id(name, 0) for name in lost]) or []
        lost = [name for name, window in zip(lost, windows, strict=True) if window is None]
        if len(lost) == len(names):
            raise DataError(
                f"{file} lists {len(names)} gold passages by id, and none is in {searched}: the first is '{names[0]}'",
                "search the corpus that the questions are about, or set data.gold=title to go by titles",
            )
        if lost:
            log.warning(
                "%s lists %d gold passages by id, of which %d are not in %s and never found: the first is '%s'",
                *(file, len(names), len(lost), searched, lost[0]),
            )


def questions_of(data: DataSettings, seed: int) -> list[Question]:
    """All questions of a run, for training and for measuring."""
    train = [question for source in data.train for question in read_source(source, seed, data.gold)]
    measured = [path for path in dict.fromkeys((data.dev, data.test)) if path is not None]
    return [*train, *(question for path in measured for question in read_questions(path, gold=data.gold))]


def _by_file(questions: Iterable[Question]) -> dict[str, list[str]]:
    names: dict[str, dict[str, None]] = {}
    for question in questions:
        if question.gold_ids:
            names.setdefault(question.file, {}).update(dict.fromkeys(question.gold_ids))
    return {file: list(listed) for file, listed in names.items()}
