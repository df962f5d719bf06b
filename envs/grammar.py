"""The tag protocol: parse one turn of the policy, and keep outside text from forging one.

A turn is ``<think>...</think>`` followed by ``<search>query</search>`` or ``<answer>text</answer>``; search
results are returned between ``<information>`` tags. Only text that the policy sampled is ever parsed.

Inside a thought, tags other than ``</think>`` are mentions. A chat template may have opened the thought already: then
``thinking`` is True, and the turn begins inside it.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence

from sleuth.reserved import ALL_TAGS, TAGS, is_markup
from sleuth.types import Action, Answer, Call, Invalid, Search

STOP_STRINGS = ("</search>", "</answer>")

OPEN_THOUGHT, CLOSE_THOUGHT = "<think>", "</think>"
ACTIONS = ("search", "answer")
"""Names of the tags that act. Tools besides search add theirs."""

_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_TAG_VARIANT = rf"<[\s/\\]*(?:{'|'.join(ALL_TAGS)})[\s/\\]*>"
_MARKS = "·¦‧†"
_DROPPED = frozenset({"Mn", "Me", "Mc", "Cf", "Cc", "Cn", "Co"})
_SPACING = re.compile(r"[\r\x0b\x0c\x85]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def parse_turn(text: str, thinking: bool = False, actions: Sequence[str] = ACTIONS) -> Action:
    """The action in ONE new turn, which begins inside an open thought if ``thinking``.

    Tags are exact ASCII; text after the first closing action tag outside a thought is ignored. The content starts at
    the last matching opening tag. What a thought says has no effect (``<think>I can <search>x</search></think>
    <answer>Oslo</answer>`` answers), and an action inside a thought that is never closed is invalid. An action that is
    neither search nor answer is a Call whose only argument, without a name, is the text between its tags.
    """
    closing = action_end(text, thinking, actions)
    head = text[: closing.start()] if closing else text
    if "<information>" in head or "</information>" in head:
        return Invalid("only search results stand between <information> tags")
    if closing is None:
        return Invalid(_why_unclosed(text, thinking, actions))
    name = closing[1]
    _, opening, content = head.rpartition(f"<{name}>")
    if not opening:
        return Invalid(f"</{name}> has no <{name}> before it")
    if _any_tag(tuple(actions)).search(content):
        return Invalid(f"another tag stands between <{name}> and </{name}>")
    content = content.strip()
    if not content:
        return Invalid({"search": "the query is empty", "answer": "the answer is empty"}.get(name, "the call is empty"))
    return Search(content) if name == "search" else Answer(content) if name == "answer" else Call(name, {"": content})


def action_end(text: str, thinking: bool = False, actions: Sequence[str] = ACTIONS) -> re.Match[str] | None:
    """The first closing action tag outside a thought, group 1 its name; None if the turn has not acted."""
    for match in _edges(tuple(actions)).finditer(text):
        if match[1] is None:
            thinking = match[0] == OPEN_THOUGHT
        elif not thinking:
            return match
    return None


def ends_thinking(text: str, thinking: bool = False) -> bool:
    """Whether a thought is open where ``text`` ends, if one is open where it begins or not (``thinking``)."""
    opened, closed = text.rfind(OPEN_THOUGHT), text.rfind(CLOSE_THOUGHT)
    return opened > closed or (thinking and closed < 0)


def opens_thought(prompt: str) -> bool:
    """Whether the policy goes on inside a thought: the last word of ``prompt`` is ``<think>``.

    Other mentions of the tag, as in an instruction, open nothing.
    """
    return prompt.rstrip().endswith(OPEN_THOUGHT)


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


def _why_unclosed(text: str, thinking: bool, actions: Sequence[str]) -> str:
    if ends_thinking(text, thinking):
        acted = any(f"</{name}>" in text for name in actions)
        return f"the {'action stands inside a <think> that' if acted else 'thought'} was not closed"
    text = _THOUGHT.sub("", text.partition(CLOSE_THOUGHT)[2] if thinking else text)
    name = max(actions, key=lambda name: (text.rfind(f"<{name}>"), name == "answer"))
    if f"<{name}>" in text:
        return f"<{name}> was opened and not closed"
    return "the turn neither searched nor answered"


@functools.lru_cache(maxsize=16)
def _edges(actions: tuple[str, ...]) -> re.Pattern[str]:
    """The tags that open and close a thought, and those that close an action: group 1 its name."""
    return re.compile(rf"</?think>|</({'|'.join(actions)})>")


@functools.lru_cache(maxsize=16)
def _any_tag(actions: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"</?(?:{'|'.join(dict.fromkeys((*TAGS, *actions)))})>")


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
