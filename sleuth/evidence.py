"""Whether a passage is evidence for a question's answer, by its title or by the answer occurring in its text.

Rewards, evaluation, training rows, mining and reports all use these rules:

- a title is supporting if the question lists it, compared after normalisation (`normalise_title`);
- a passage *contains* an answer if its text does. Its title does not count, because a query that guesses the answer
  finds the passage with that title whatever its text says. A passage *mentions* an answer if its title or text
  contains it, which is enough to doubt that the passage is a negative;
- yes, no, true, false and noanswer occur in too many texts to be evidence (`informative_answers`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

import regex

from sleuth.types import Hit, Passage, Question

_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
_WINDOW = "::w"
_VERDICTS = frozenset({"yes", "no", "true", "false", "noanswer"})


class TitlesFound(NamedTuple):
    """How many of a question's supporting titles are among the hits, and how many it lists."""

    found: int
    wanted: int


def tokens(text: str) -> list[str]:
    """DPR's tokens (Karpukhin et al. 2020, after DrQA), in lower case.

    NFD, then runs of letters, digits and marks, or a single other visible character.
    """
    return [token.lower() for token in _TOKEN.findall(unicodedata.normalize("NFD", text))]


def has_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether the tokens of any answer occur contiguously in ``text``, as in DPR's top-k accuracy.

    So ``art`` is not in ``party``. An answer without tokens is in no text.
    """
    haystack = _spaced(text)
    return any(needle != "  " and needle in haystack for needle in map(_spaced, answers))


def informative_answers(answers: Iterable[str]) -> list[str]:
    """The answers whose presence in a passage is evidence."""
    return [answer for answer in answers if _informs(answer)]


def contains_answer(passage: Passage, answers: Iterable[str]) -> bool:
    """Whether the text of ``passage`` contains an informative answer."""
    return has_answer(passage.text, informative_answers(answers))


def mentions_answer(passage: Passage, answers: Iterable[str]) -> bool:
    """Whether the title or text of ``passage`` contains an informative answer."""
    informative = informative_answers(answers)
    return has_answer(passage.text, informative) or has_answer(passage.title, informative)


def normalise_title(title: str) -> str:
    """The title without differences of case, spacing, underscores and Unicode composition."""
    return " ".join(unicodedata.normalize("NFC", title).casefold().replace("_", " ").split())


def supporting_titles(question: Question) -> set[str]:
    """The normalised titles that ``question`` lists as supporting."""
    return set(map(normalise_title, question.supporting_titles))


def window_id(parent: str, number: int) -> str:
    """The id of window ``number``, from 0, of the passage ``parent``."""
    return f"{parent}{_WINDOW}{number}"


def parent_id(identity: str) -> str:
    """The id of the passage that a window was cut from; of anything but a window, its own id.

    Nothing but the id says so. ``doc::3`` and ``doc::w`` are no windows; a window of a window names that window.
    """
    parent, mark, number = identity.rpartition(_WINDOW)
    return parent if mark and parent and number.isascii() and number.isdecimal() else identity


def titles_found(question: Question, hits: Iterable[Hit]) -> TitlesFound:
    """How many of the supporting titles of ``question`` are among ``hits``."""
    wanted = supporting_titles(question)
    return TitlesFound(len(wanted & {normalise_title(hit.passage.title) for hit in hits}), len(wanted))


def _informs(answer: str) -> bool:
    found = tokens(answer)
    words = [token for token in found if any(map(str.isalnum, token))]
    return bool(found) and not (len(words) == 1 and words[0] in _VERDICTS)


def _spaced(text: str) -> str:
    return f" {' '.join(tokens(text))} "
