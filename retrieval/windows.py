"""Cuts the passages of a corpus into shorter ones: windows of words, or of sentences, that overlap.

A short window costs a policy fewer tokens, and its vector stands for one matter. Each has the title of its passage and
an id that names it, ``PASSAGE::w0``, ``PASSAGE::w1`` and so on, so that judgements of the passage hold for its windows
(MaxP and its kin: Dai and Callan, Deeper Text Understanding for IR with Contextual Neural Language Modeling, SIGIR
2019). The text of a window is a slice of the passage's own, character by character.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import regex

from retrieval.corpus import BadRow, PassageRow
from retrieval.windows_config import WindowSettings
from sleuth.evidence import window_id
from sleuth.types import Passage

_WORD = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*"
    r"|[^\s\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]+"
)
"""Between spaces; a character of a script that writes without spaces is one by itself."""
_END = regex.compile(
    r"(?<=[.!?…][\"'”’»)\]]*)(?<!\b(?:\p{Lu}|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|No|vs|cf|e\.g|i\.e)\.)"
    r"\s+(?=[\"'“‘«(\[]*[\p{Lu}\p{Lo}\p{N}])|(?<=[。！？।][」』”’]*)\s*(?=\S)"
)
"""Where one sentence ends and the next begins; initials and a few abbreviations end none."""


def cut_rows(rows: Iterator[PassageRow | BadRow], window: WindowSettings | None) -> Iterator[PassageRow | BadRow]:
    """``rows`` with the windows of each passage in its place; as they are without ``window``."""
    for row in rows:
        if window is None or isinstance(row, BadRow):
            yield row
        else:
            yield from (replace(row, passage=passage) for passage in cut(row.passage, window))


def cut(passage: Passage, window: WindowSettings) -> list[Passage]:
    """The windows of ``passage`` in order; itself where it is no longer than one, or has a picture."""
    spans = _words(passage.text) if window.words else _sentences(passage.text)
    if len(spans) <= window.size or passage.image is not None:
        return [passage]
    starts = range(0, len(spans) - window.size + window.step, window.step)
    return [
        Passage(window_id(passage.id, number), passage.title, _slice(passage.text, spans[start : start + window.size]))
        for number, start in enumerate(starts)
    ]


def _words(text: str) -> list[tuple[int, int]]:
    return [found.span() for found in _WORD.finditer(text)]


def _sentences(text: str) -> list[tuple[int, int]]:
    """Where the sentences begin and end."""
    if not text.strip():
        return []
    cuts = [found.span() for found in _END.finditer(text)]
    starts = [len(text) - len(text.lstrip()), *(end for _, end in cuts)]
    return list(zip(starts, [*(start for start, _ in cuts), len(text.rstrip())], strict=True))


def _slice(text: str, spans: Sequence[tuple[int, int]]) -> str:
    return text[spans[0][0] : spans[-1][1]]
