"""What in a passage speaks for the answer of a question: its title, or the answer in its text.

Rewards, evaluation, training rows, mining and reports judge by these rules and no others:

- a title is supporting when the question names it, whatever its spelling (`normalise_title`);
- a passage *tells* an answer when its text holds it. Its title does not count: a query that guesses the answer finds
  the passage of that title, whatever it says. It *mentions* an answer when title or text holds it, which is enough to
  doubt that the passage is a negative;
- yes, no, true, false and noanswer are in too many texts to tell anything (`telling_answers`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

import regex

from sleuth.types import Hit, Passage, Question

_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
_VERDICTS = frozenset({"yes", "no", "true", "false", "noanswer"})


class TitlesFound(NamedTuple):
    """How many of a question's supporting titles are among hits, and how many it names."""

    found: int
    wanted: int


def tokens(text: str) -> list[str]:
    """DPR's tokens (Karpukhin et al. 2020, after DrQA), in lower case.

    NFD, then runs of letters, digits and marks, or a single other visible character.
    """
    return [token.lower() for token in _TOKEN.findall(unicodedata.normalize("NFD", text))]


def has_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether the tokens of any answer stand in ``text`` side by side, as DPR's top-k accuracy has it.

    So ``art`` is not in ``party``. An answer without tokens is in no text.
    """
    haystack = _spaced(text)
    return any(needle != "  " and needle in haystack for needle in map(_spaced, answers))


def telling_answers(answers: Iterable[str]) -> list[str]:
    """Those whose presence in a passage says something."""
    return [answer for answer in answers if answer.casefold().strip(" .") not in _VERDICTS]


def tells_answer(passage: Passage, answers: Iterable[str]) -> bool:
    """Whether the text of ``passage`` holds one of ``answers`` that tells something."""
    return has_answer(passage.text, telling_answers(answers))


def mentions_answer(passage: Passage, answers: Iterable[str]) -> bool:
    """Whether title or text of ``passage`` holds one of ``answers`` that tells something."""
    telling = telling_answers(answers)
    return has_answer(passage.text, telling) or has_answer(passage.title, telling)


def normalise_title(title: str) -> str:
    """Titles are equal whatever their case, spacing, underscores and Unicode composition."""
    return " ".join(unicodedata.normalize("NFC", title).casefold().replace("_", " ").split())


def supporting_titles(question: Question) -> set[str]:
    """The normalised titles that ``question`` names as supporting."""
    return set(map(normalise_title, question.supporting_titles))


def titles_found(question: Question, hits: Iterable[Hit]) -> TitlesFound:
    """Of the titles that ``question`` names as supporting, those among ``hits``."""
    wanted = supporting_titles(question)
    return TitlesFound(len(wanted & {normalise_title(hit.passage.title) for hit in hits}), len(wanted))


def _spaced(text: str) -> str:
    return f" {' '.join(tokens(text))} "
