"""The tag protocol: parse one turn of the policy, and keep outside text from forging one.

A turn is ``<think>...</think>`` followed by ``<search>query</search>`` or ``<answer>text</answer>``; search
results are returned between ``<information>`` tags. Only text that the policy sampled is ever parsed.
"""

from __future__ import annotations

import functools
import re
import unicodedata

from sleuth.reserved import is_markup
from sleuth.types import Action, Answer, Invalid, Search

TAGS = ("think", "search", "answer", "information")
ALL_TAGS = (*TAGS, "tool_call", "tool_response", "open")
"""Of every protocol: none of them may stand in outside text, whichever is in use."""
STOP_STRINGS = ("</search>", "</answer>")

_CLOSING = re.compile(r"</(search|answer)>")
_ANY_TAG = re.compile(rf"</?(?:{'|'.join(TAGS)})>")
_TAG_VARIANT = rf"<[\s/\\]*(?:{'|'.join(ALL_TAGS)})[\s/\\]*>"
_MARKS = "·¦‧†"
_DROPPED = frozenset({"Mn", "Me", "Mc", "Cf", "Cc", "Cn", "Co"})
_SPACING = re.compile(r"[\r\x0b\x0c\x85]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def parse_turn(text: str) -> Action:
    """The action in ONE new turn. Tags are exact ASCII; text after the first closing action tag is ignored.

    The content starts at the last matching opening tag, so a tag that is only mentioned in a thought
    (``<think>I can <search> or <answer></think><answer>Oslo</answer>``) has no effect. An action inside
    an unclosed thought also counts as a mention, and the turn is invalid.
    """
    closing = _CLOSING.search(text)
    head = text[: closing.start()] if closing else text
    if "<information>" in head or "</information>" in head:
        return Invalid("only search results stand between <information> tags")
    if closing is None:
        return Invalid(_why_unclosed(text))
    name = closing[1]
    before, opening, content = head.rpartition(f"<{name}>")
    if not opening:
        return Invalid(f"</{name}> has no <{name}> before it")
    if before.rfind("<think>") > before.rfind("</think>"):
        return Invalid("the action stands inside a <think> that was not closed")
    if _ANY_TAG.search(content):
        return Invalid(f"another tag stands between <{name}> and </{name}>")
    content = content.strip()
    if not content:
        return Invalid("the query is empty" if name == "search" else "the answer is empty")
    return Search(content) if name == "search" else Answer(content)


def neutralise(text: str, reserved: frozenset[str] = frozenset()) -> str:
    """``text`` with every protocol tag and every ``reserved`` string broken by a visible mark.

    ``</answer>`` becomes ``<·/answer>``; other text is unchanged. Tags are recognised regardless of case,
    inner spaces and slashes, in full-width and other compatibility letters, and with accents or invisible
    characters in between, since tokenizers differ in what they normalise. A mark is inserted and nothing is
    deleted, so two halves can never join to form a new tag. Control characters (except newline and tab) and
    lone surrogates become U+FFFD; carriage returns and other line controls become a space. Idempotent.
    """
    clean = _CONTROL.sub("\ufffd", _SPACING.sub(" ", text))
    pattern, mark = _pattern(reserved)
    if clean.isascii():
        folded, origin = clean.lower(), None
    else:
        folded, origin = _fold_with_origin(clean)
    # A character that folds to several may contain a whole match: it is replaced, any other is marked.
    marked: set[int] = set()
    replaced: set[int] = set()
    for match in pattern.finditer(folded):
        first, last = match.start(1), match.end(1) - 1
        if origin is not None:
            first, last = origin[first], origin[last]
        (marked if last > first else replaced).add(first)
    if not marked and not replaced:
        return clean
    return "".join(mark if i in replaced else char + mark if i in marked else char for i, char in enumerate(clean))


def _why_unclosed(text: str) -> str:
    name = "search" if text.rfind("<search>") > text.rfind("<answer>") else "answer"
    if f"<{name}>" in text:
        return f"<{name}> was opened and not closed"
    return "the turn neither searched nor answered"


@functools.lru_cache(maxsize=16)
def _pattern(reserved: frozenset[str]) -> tuple[re.Pattern[str], str]:
    """A pattern whose group 1 is a forbidden string, found at every start position, and a mark that none contains."""
    folded = {_fold(string) for string in reserved if is_markup(string)}
    strings = sorted((s for s in folded if len(s) >= 2), key=lambda s: (-len(s), s))
    first = "".join(sorted({re.escape(s[0]) for s in strings} | {"<"}))
    alternatives = "|".join([_TAG_VARIANT, *map(re.escape, strings)])
    mark = next((m for m in _MARKS if not any(m in s for s in strings)), "\u2043")
    return re.compile(f"(?=[{first}])(?=({alternatives}))"), mark


def _fold_with_origin(text: str) -> tuple[str, list[int]]:
    """The folded text, and for each of its characters the index of the one it came from."""
    parts = list(map(_fold_character, text))
    return "".join(parts), [i for i, part in enumerate(parts) for _ in part]


def _fold(text: str) -> str:
    return "".join(map(_fold_character, text))


@functools.lru_cache(maxsize=4096)
def _fold_character(char: str) -> str:
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).lower())
    return "".join(c for c in decomposed if not _ignorable(c))


def _ignorable(char: str) -> bool:
    """Accents, format and control characters, and U+FFFD: some normalisers drop them."""
    return char == "\ufffd" or (char not in "\n\t" and unicodedata.category(char) in _DROPPED)
