"""Scores a prediction file in HotpotQA's layout, without running a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleuth.errors import DataError

if TYPE_CHECKING:
    from sleuth.types import Question


def score_file(predictions: Path, data: str, limit: int | None) -> dict[str, Any]:
    """The official figures of a prediction file over the questions of ``data``, with intervals for EM and F1.

    A question without a prediction counts as 0. Raises DataError for a file that is missing, not JSON, in another
    layout or about other questions.
    """
    from envs.questions import load_questions, load_supporting_facts
    from rewards.official import score_predictions
    from rewards.text_match import exact_match, f1
    from sleuth.statistics import mean_interval

    content = _read(predictions)
    questions = load_questions(data, limit=limit)
    try:
        figures: dict[str, Any] = dict(score_predictions(questions, content, load_supporting_facts(data, limit)))
    except DataError as error:
        raise DataError(f"{predictions}: {error.message}", error.hint) from None
    answers: Mapping[str, str] = content["answer"]
    strangers = _strangers(answers, questions, f"{predictions} has predictions for none of the questions in {data}")
    methods: dict[str, str] = {}
    for name, metric in (("em", exact_match), ("f1", f1)):
        values = [metric(answers.get(question.id), question.answers) for question in questions]
        found = mean_interval(values)
        figures[f"{name}_interval"] = [found.low, found.high]
        methods[name] = found.method
    return {**figures, "interval_methods": methods, "other_questions": strangers}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a prediction file", 'the layout is {"answer": {id: text}, "sp": {}}')
    return content


def _strangers(answers: Mapping[str, str], questions: Sequence[Question], fault: str) -> int:
    """How many predictions are for other questions; if all are, that is an error, not a score of 0."""
    known = {question.id for question in questions}
    strangers = sum(identity not in known for identity in answers)
    if answers and strangers == len(answers):
        example, wanted = next(iter(answers)), questions[0].id
        raise DataError(fault, f"predicted ids are like '{example}', the questions' like '{wanted}'")
    return strangers
