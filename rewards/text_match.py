"""Comparing answers as HotpotQA and SQuAD do."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CLOSED = ("yes", "no", "noanswer")


class Overlap(NamedTuple):
    f1: float
    precision: float
    recall: float


def normalise_answer(text: str) -> str:
    """Lower case, no ASCII punctuation, no English articles, single spaces. Source: the SQuAD v1.1 script."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str | None, answers: Sequence[str]) -> float:
    """1 if the prediction equals any answer after normalisation; None (no answer given) scores 0."""
    if prediction is None:
        return 0.0
    given = normalise_answer(prediction)
    return float(any(given == normalise_answer(answer) for answer in answers))


def f1(prediction: str | None, answers: Sequence[str]) -> float:
    """Token F1 against the best-matching answer; None scores 0."""
    return best_overlap(prediction, answers).f1


def best_overlap(prediction: str | None, answers: Sequence[str]) -> Overlap:
    """F1, precision and recall against the answer with the highest F1."""
    if prediction is None:
        return Overlap(0.0, 0.0, 0.0)
    return max((overlap(prediction, answer) for answer in answers), default=Overlap(0.0, 0.0, 0.0))


def overlap(prediction: str, answer: str) -> Overlap:
    """Token overlap; yes, no and noanswer match only themselves. Source: hotpot_evaluate_v1.py."""
    given, wanted = normalise_answer(prediction), normalise_answer(answer)
    if given != wanted and (given in _CLOSED or wanted in _CLOSED):
        return Overlap(0.0, 0.0, 0.0)
    given_tokens, wanted_tokens = given.split(), wanted.split()
    same = (Counter(given_tokens) & Counter(wanted_tokens)).total()
    if same == 0:
        return Overlap(0.0, 0.0, 0.0)
    precision, recall = same / len(given_tokens), same / len(wanted_tokens)
    return Overlap(2 * precision * recall / (precision + recall), precision, recall)
