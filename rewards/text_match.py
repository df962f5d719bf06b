"""Comparing answers as HotpotQA and SQuAD do."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CLOSED = ("yes", "no", "noanswer")

Cover = Literal["text", "words", "bag"]


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


def cover_match(prediction: str | None, answers: Sequence[str], match: Cover = "text") -> float:
    """1 if the prediction contains any of the answers after normalisation; None (no answer given) scores 0.

    ``text``: as a substring, whatever stands beside it, so art is in party: FlashRAG's sub-EM (``acc``) and
    R1-Searcher's second cover EM (CEM). ``words``: as whole words in a row; yes, no and noanswer only if nothing else
    is said, as in F1. ``bag``: every word of it somewhere, in any order: R1-Searcher's first cover EM.
    An answer of which normalising leaves nothing is contained only in another such one.
    """
    if prediction is None:
        return 0.0
    given = normalise_answer(prediction)
    return float(any(_covers(given, normalise_answer(answer), match) for answer in answers))


def _covers(given: str, wanted: str, match: Cover) -> bool:
    if not wanted or not given:
        return given == wanted
    if match == "text":
        return wanted in given
    if match == "bag":
        return set(wanted.split()) <= set(given.split())
    if given in _CLOSED or wanted in _CLOSED:
        return given == wanted
    return f" {wanted} " in f" {given} "


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
