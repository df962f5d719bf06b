"""Queries that a searcher can think of: their content words stand in the question, or in a passage already shown.

Function words are free. Words are compared as `sleuth.evidence.tokens` has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable

import regex

from sleuth.evidence import has_answer, tokens

FUNCTION_WORDS = frozenset(
    """
    a an the this that these those there here it its he him his she her they them their we us our you your i me my
    who whom whose which what when where why how of in on at to for by with from into onto upon as than about over
    under between among during before after since until within through against and or but nor if then so no not
    is are was were be been being am do does did done has have had having can could will would shall should may
    might must many much some any each other another such same also both either neither one all most more just
    s t d
    """.split()  # noqa: SIM905 (a list of words is read as words)
)
"""English words that say nothing by themselves of what is asked for."""

_WORD = regex.compile(r"[\p{L}\p{N}\p{M}]+(?:['\u2019.&\-\u2013/][\p{L}\p{N}\p{M}]+)*")
_QUOTED = re.compile(r'["\u201c]([^"\u201c\u201d]{2,80})["\u201d]')
_BRACKETS = re.compile(r"\s*\([^)]*\)$")
_SENTENCE_END = re.compile(r"[.!?][\"'\u201d)\]]*$")
_ABBREVIATION = re.compile(r"^\W*(?:(?:\w\.)*\w|Mr|Mrs|Ms|Dr|St|No|Jr|Sr|vs|ca)\.$")


def content_words(text: str) -> frozenset[str]:
    """The words of ``text`` that are no function words, normalised."""
    return frozenset(_meaning(text))


def is_known(text: str, known: Collection[str]) -> bool:
    """Whether ``text`` has content words and all of them are ``known``."""
    found = _meaning(text)
    return bool(found) and all(word in known for word in found)


def only_known(text: str, known: Collection[str]) -> str:
    """``text`` without content words that are not ``known``, and without function words at its ends.

    Empty if nothing is left.
    """
    kept = [word for word in _WORD.findall(text) if all(part in known for part in _meaning(word))]
    return " ".join(_trimmed(kept))


def keywords(text: str, without: str = "") -> str:
    """The content words of ``text`` as it writes them, each once, but those of ``without``."""
    seen, kept = set(content_words(without)), []
    for word in _WORD.findall(text):
        parts = _meaning(word)
        if parts and not seen.issuperset(parts):
            kept.append(word)
            seen.update(parts)
    return " ".join(kept)


def names(text: str) -> str:
    """What is quoted in ``text``, and its capitalised words and numbers, the first word of a sentence left out."""
    quoted = " ".join(_QUOTED.findall(text))
    words, kept = text.split(), []
    for before, word in zip([".", *words], words, strict=False):
        core = _WORD.search(word)
        if core is None or not _meaning(core[0]):
            continue
        named = core[0][0].isupper() and not _SENTENCE_END.search(before)
        if named or any(map(str.isdigit, core[0])):
            kept.append(core[0])
    return " ".join(dict.fromkeys(f"{quoted} {' '.join(kept)}".split()))


def bare(title: str) -> str:
    """The title without the bracketed part that disambiguates it."""
    return _BRACKETS.sub("", title) or title


def clue(text: str, wanted: Iterable[str], longest: int) -> str:
    """The words of ``text`` around the first of ``wanted`` that stands in it, within a sentence where that fits.

    At most ``longest`` words, or what is wanted if that is longer; empty if none of ``wanted`` is there.
    """
    words = text.split()
    for value in wanted:
        if not has_answer(text, [value]):
            continue
        end = _first(len(words), lambda n: has_answer(" ".join(words[:n]), [value]))  # noqa: B023
        start = end - _first(end, lambda n: has_answer(" ".join(words[end - n : end]), [value]))  # noqa: B023
        return _around(words, start, end, longest)
    return ""


def nearest_sentence(text: str, about: str, longest: int) -> str:
    """The start of the sentence of ``text`` that shares most content words with ``about``, the first of several."""
    wanted = content_words(about)
    sentences = _sentences(text.split())
    best = max(sentences, key=lambda words: len(wanted & content_words(" ".join(words))), default=[])
    return _shortened(best, longest)


def spaced(text: str) -> str:
    """The tokens of ``text`` between spaces: whatever stands in a text stands in this, as `has_answer` has it."""
    return f" {' '.join(tokens(text))} "


def shown_part(text: str, seen: str) -> str:
    """As much of the start of ``text`` as stands in an observation, which may have cut it: ``seen``, `spaced`."""
    if spaced(text) in seen:
        return text
    words = text.split()
    left, right = 0, len(words)
    while left < right:
        middle = (left + right + 1) // 2
        if spaced(" ".join(words[:middle])) in seen:
            left = middle
        else:
            right = middle - 1
    return " ".join(words[:left])


def _meaning(text: str) -> list[str]:
    return [t for t in tokens(text) if t not in FUNCTION_WORDS and any(map(str.isalnum, t))]


def _trimmed(words: list[str]) -> list[str]:
    meaningful = [i for i, word in enumerate(words) if _meaning(word)]
    return words[meaningful[0] : meaningful[-1] + 1] if meaningful else []


def _first(most: int, holds: Callable[[int], bool]) -> int:
    """The smallest number from 1 to ``most`` for which ``holds``, which stays true once it is."""
    left, right = 1, most
    while left < right:
        middle = (left + right) // 2
        if holds(middle):
            right = middle
        else:
            left = middle + 1
    return left


def _around(words: list[str], start: int, end: int, longest: int) -> str:
    first = start
    while first > 0 and not _ends(words[first - 1]) and end - first < longest:
        first -= 1
    last = end
    while last < len(words) and not _ends(words[last - 1]) and last - first < longest:
        last += 1
    begun = first > 0 and not _ends(words[first - 1])
    return f"{'... ' if begun else ''}{_closed(words[first:last], last < len(words))}"


def _closed(words: list[str], more: bool) -> str:
    said = " ".join(words)
    return said if not more or _ends(words[-1]) else f"{said.rstrip(',;:')} ..."


def _shortened(words: list[str], longest: int) -> str:
    return _closed(words[:longest], len(words) > longest) if words else ""


def _sentences(words: list[str]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for word in words:
        found[-1].append(word)
        if _ends(word):
            found.append([])
    return [sentence for sentence in found if sentence]


def _ends(word: str) -> bool:
    """Whether a sentence ends with ``word``, as far as it shows."""
    return bool(_SENTENCE_END.search(word)) and not _ABBREVIATION.match(word)
