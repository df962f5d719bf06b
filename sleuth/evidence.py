"""Whether a passage is evidence for a question's answer: by its id, its title, or the answer occurring in its text.

Rewards, evaluation, training rows, mining and reports all use these rules:

- a passage is gold if the question lists its id or, for a window, that of its passage (`parent_id`). Titles decide
  only where a question lists no ids: several passages may have one title. They are compared after normalisation
  (`normalise_title`);
- a passage *contains* an answer if its text does. Its title does not count, because a query that guesses the answer
  finds the passage with that title whatever its text says. A passage *mentions* an answer if its title or text
  contains it, which is enough to doubt that the passage is a negative;
- yes, no, true, false and noanswer occur in too many texts to be evidence (`informative_answers`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import regex

from sleuth.types import Hit, Passage, Question

_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
_WINDOW = "::w"
_VERDICTS = frozenset({"yes", "no", "true", "false", "noanswer"})


By = Literal["auto", "id", "title"]
"""By what gold passages are known; ``auto``: by id where a question lists ids, else by title."""


class Found(NamedTuple):
    """How many of a question's gold passages, or titles, are among the hits, and how many it needs."""

    found: int
    wanted: int


@dataclass(frozen=True, slots=True)
class Golds:
    """What a question needs to find. ``names``: id or normalised title -> what it stands for.

    Alternatives all stand for the same. ``by_id``: whether the names are ids.
    """

    names: Mapping[str, str]
    by_id: bool

    def __bool__(self) -> bool:
        return bool(self.names)

    def of(self, passage: Passage) -> str | None:
        """What ``passage`` stands for; None if it is no gold passage."""
        if not self.by_id:
            return self.names.get(normalise_title(passage.title))
        return self.names.get(passage.id) or self.names.get(parent_id(passage.id))

    def among(self, hits: Iterable[Hit]) -> set[str]:
        """What is needed and was found."""
        return {gold for hit in hits if (gold := self.of(hit.passage)) is not None}

    def found(self, hits: Iterable[Hit]) -> Found:
        return Found(len(self.among(hits)), len(set(self.names.values())))


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


def telling_answers(question: Question) -> list[str]:
    """The informative answers of ``question`` that it does not name itself: a passage that has one tells something."""
    return [one for one in informative_answers(question.answers) if not has_answer(question.text, [one])]


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


def golds_of(question: Question, by: By = "auto") -> Golds:
    """What ``question`` needs to find; false if it does not say."""
    by_id = by == "id" or (by == "auto" and bool(question.gold_ids))
    names = question.gold_ids if by_id else tuple(map(normalise_title, question.supporting_titles))
    one = names[0] if names and question.alternatives else None
    return Golds({name: one or name for name in names}, by_id)


def window_id(parent: str, number: int) -> str:
    """The id of window ``number``, from 0, of the passage ``parent``."""
    return f"{parent}{_WINDOW}{number}"


def parent_id(identity: str) -> str:
    """The id of the passage that a window was cut from; of anything but a window, its own id.

    Nothing but the id says so. ``doc::3`` and ``doc::w`` are no windows; a window of a window names that window.
    """
    parent, mark, number = identity.rpartition(_WINDOW)
    return parent if mark and parent and number.isascii() and number.isdecimal() else identity


def titles_found(question: Question, hits: Iterable[Hit]) -> Found:
    """How many of the supporting titles of ``question`` are among ``hits``."""
    return golds_of(question, "title").found(hits)


def _informs(answer: str) -> bool:
    found = tokens(answer)
    words = [token for token in found if any(map(str.isalnum, token))]
    return bool(found) and not (len(words) == 1 and words[0] in _VERDICTS)


def _spaced(text: str) -> str:
    return f" {' '.join(tokens(text))} "


def same_text(text: str) -> str:
    """``text`` without differences of case, spacing and punctuation."""
    return " ".join(word for word in tokens(text) if any(map(str.isalnum, word)))
