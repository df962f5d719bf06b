"""Runs of other policies, read from JSON lines: ReAct chats, tagged text, or plain turns (docs/formats.md).

A row has a question, its answers, and the run in one of three layouts, the first that is there:

- ``turns``: ``[{"think", "search", "information"}, ..., {"think", "answer"}]``;
- ``messages``: a chat whose assistant writes ``Thought: ... Action: search[...]`` or tags, and whose user, or tool,
  answers with what was found;
- ``tagged``: one text, ``<think>..</think> <search>..</search> <information>..</information> ... <answer>..</answer>``.

What a run has seen is outside text like any passage: it is shown as one, and neutralised as such.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from envs.questions import questions_from_rows
from sleuth.evidence import tokens
from sleuth.rows import RawRow, name_of, read_rows
from sleuth.types import Passage, Plan, PlanStep, Question

LAYOUTS = ("turns", "messages", "tagged")
ROLES = ("system", "user", "assistant", "tool")
WRONG = "its answer was wrong"
NO_SEARCH = "it made no search"
_OTHER = "a turn neither searched nor answered"
_NO_END = "it ends without an answer"
_REACT = re.compile(
    r"\s*(?:Thought(?: \d+)?:(?P<think>.*?))?\s*Action(?: \d+)?:\s*(?P<name>\w+)\s*\[(?P<said>.*)\]\s*", re.DOTALL
)
_UNTAGGED = r"(?:(?!</?(?:think|search|information|answer)>).)*"
"""What a policy says has no tags inside; what it has seen may."""
_TAGGED = re.compile(
    rf"\s*(?:<think>(?P<think>{_UNTAGGED})</think>)?\s*<(?P<name>search|answer)>(?P<said>{_UNTAGGED})</(?P=name)>",
    re.DOTALL,
)
_INFORMATION = re.compile(r"\s*<information>(.*?)</information>", re.DOTALL)
_OBSERVATION = re.compile(r"\s*Observation(?: \d+)?:")
_REWARD = re.compile(r"reward\s*[=:]\s*(true|false|[01](?:\.0)?)\b", re.IGNORECASE)
_ANSWERS = {"answer", "finish"}


@dataclass(frozen=True, slots=True)
class Recording:
    """A run: as a plan, with what each of its searches has found, or why it cannot be learned from."""

    plan: Plan
    observations: tuple[tuple[Passage, ...], ...]
    dropped: str = ""

    @property
    def question(self) -> Question:
        return self.plan.question


@dataclass(frozen=True, slots=True)
class _Said:
    """A turn as the run has it: ``name`` is search or answer, or what else it did."""

    think: str
    name: str
    text: str
    seen: str = ""


def holds_recordings(row: RawRow) -> bool:
    """Whether ``row`` is one of a run rather than of a question alone."""
    return any(layout in row.fields for layout in LAYOUTS)


def read_recordings(source: str | Path, limit: int | None = None) -> list[Recording]:
    """The runs of a file, those that cannot be learned from included.

    Raises DataError naming file and line of a row that is no run.
    """
    rows = read_rows(source, limit)
    asked = [RawRow(row.where, row.number, _as_question(row)) for row in rows]
    questions = questions_from_rows(asked, name_of(source), file=str(source))
    return [_recording(row, question) for row, question in zip(rows, questions, strict=True)]


def _as_question(row: RawRow) -> dict[str, Any]:
    """The row as a question of FlashRAG's: a chat's first user may have asked it; the run itself may be its answer."""
    if not holds_recordings(row):
        raise row.error(f"not a run: it has none of {', '.join(LAYOUTS)}", "see docs/formats.md")
    fields = dict(row.fields)
    if "question" not in fields and "messages" in fields:
        fields["question"] = next((text for role, text in _messages(row) if role == "user"), None)
    if "golden_answers" not in fields:
        fields["golden_answers"] = fields.pop("answers", fields.pop("answer", None))
    if fields["golden_answers"] is None:
        said = [turn.text for turn in _turns(row) if turn.name in _ANSWERS]
        if _reward(row) is None:
            raise row.error("neither 'golden_answers' nor a reward says whether the run is right")
        fields["golden_answers"] = said[-1:] or ["-"]
    return {name: fields[name] for name in ("id", "question", "golden_answers", "metadata") if name in fields}


def _recording(row: RawRow, question: Question) -> Recording:
    turns = _turns(row)
    searches = [turn for turn in turns if turn.name == "search"]
    steps = tuple(PlanStep(turn.think, turn.text) for turn in searches)
    seen = tuple(tuple(_passages(f"{question.id}/{i}", turn.seen)) for i, turn in enumerate(searches, start=1))
    last = turns[-1] if turns else _Said("", "", "")
    plan = Plan(question, steps, last.think, last.text)
    return Recording(plan, seen, _why_not(row, question, turns))


def _why_not(row: RawRow, question: Question, turns: Sequence[_Said]) -> str:
    last = turns[-1] if turns else _Said("", "", "")
    if last.name not in _ANSWERS or not last.text:
        return _NO_END
    if any(turn.name != "search" or not turn.text for turn in turns[:-1]):
        return _OTHER
    reward = _reward(row)
    if reward is None:
        reward = any(tokens(last.text) == tokens(answer) for answer in question.answers)
    if not reward:
        return WRONG
    return NO_SEARCH if len(turns) == 1 else ""


def _reward(row: RawRow) -> bool | None:
    """Whether the run was judged right; None if nobody did."""
    metadata = row.fields.get("metadata")
    given = row.fields.get("reward", metadata.get("reward") if isinstance(metadata, Mapping) else None)
    if given is None and "messages" in row.fields:
        role, text = (_messages(row) or [("", "")])[-1]
        told = _REWARD.search(text) if role in ("user", "tool") else None
        return told[1].lower() in ("true", "1", "1.0") if told else None
    if given is None or isinstance(given, bool):
        return given
    if not isinstance(given, int | float):
        raise row.error("'reward' is neither true or false nor a number")
    return given >= 1.0


def _turns(row: RawRow) -> list[_Said]:
    if "turns" in row.fields:
        return list(_plain_turns(row))
    if "messages" in row.fields:
        return list(_chat_turns(_messages(row)))
    if not isinstance(row.fields["tagged"], str):
        raise row.error("'tagged' is not a text")
    return list(_tagged_turns(row.fields["tagged"]))


def _plain_turns(row: RawRow) -> Iterator[_Said]:
    turns = row.fields["turns"]
    if not isinstance(turns, list):
        raise row.error("'turns' is not a list")
    for number, turn in enumerate(turns, start=1):
        known = {"think", "search", "information", "answer"}
        if not isinstance(turn, Mapping) or not all(isinstance(v, str) and k in known for k, v in turn.items()):
            raise row.error(f"turn {number} is not an object of texts", f"its keys: {', '.join(sorted(known))}")
        name = "search" if "search" in turn else "answer" if "answer" in turn else ""
        yield _said(turn.get("think", ""), name, turn.get(name, ""), turn.get("information", ""))


def _messages(row: RawRow) -> list[tuple[str, str]]:
    """Role and text of each message."""
    messages = row.fields.get("messages")
    if not isinstance(messages, list):
        raise row.error("'messages' is not a list")
    found = []
    for number, message in enumerate(messages, start=1):
        role = message.get("role") if isinstance(message, Mapping) else None
        text = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or not isinstance(text, str):
            raise row.error(f"message {number} has no role and content, both texts")
        if role not in ROLES:
            raise row.error(f"message {number} has the role {role!r}", f"known roles: {', '.join(ROLES)}")
        found.append((role, text))
    return found


def _chat_turns(messages: Sequence[tuple[str, str]]) -> Iterator[_Said]:
    """The assistant's turns, each with what the next message says; several turns in one message follow as tags."""
    for i, (role, text) in enumerate(messages):
        if role != "assistant":
            continue
        turns = list(_react_or_tags(text))
        after = messages[i + 1] if i + 1 < len(messages) else ("", "")
        if turns and turns[-1].name == "search" and not turns[-1].seen and after[0] in ("user", "tool"):
            turns[-1] = replace(turns[-1], seen=_observed(after[1]))
        yield from turns


def _react_or_tags(text: str) -> Iterator[_Said]:
    react = _REACT.fullmatch(text)
    if react is None:
        yield from _tagged_turns(text)
    else:
        yield _said(react["think"] or "", react["name"].lower(), react["said"])


def _observed(text: str) -> str:
    tagged = _INFORMATION.fullmatch(text.rstrip())
    return (tagged[1] if tagged else _OBSERVATION.sub("", text, count=1)).strip()


def _tagged_turns(text: str) -> Iterator[_Said]:
    """The turns of a tagged text; what is no turn, or stands between turns, is one that did something else."""
    position = 0
    while text[position:].strip():
        turn = _TAGGED.match(text, position)
        if turn is None:
            yield _Said("", "", "")
            return
        position = turn.end()
        seen = _INFORMATION.match(text, position) if turn["name"] == "search" else None
        position = seen.end() if seen else position
        yield _said(turn["think"] or "", turn["name"], turn["said"], seen[1] if seen else "")


def _said(think: str, name: str, text: str, seen: str = "") -> _Said:
    return _Said(" ".join(think.split()), name, " ".join(text.split()), seen.strip())


_NUMBERED = re.compile(r"^\[\d+\] (?P<title>[^\n]*)\n", re.MULTILINE)
_DOC = re.compile(r'^Doc \d+\s?\(Title: "?(?P<title>[^\n]*?)"?\) ?', re.MULTILINE)


def _passages(identity: str, seen: str) -> Iterator[Passage]:
    """An observation as passages: those of our own or Search-R1's blocks, else one of all its text."""
    heads = next((found for form in (_NUMBERED, _DOC) if (found := list(form.finditer(seen)))), [])
    if not heads or seen[: heads[0].start()].strip():
        if seen:
            yield Passage(identity, "", seen)
        return
    ends = [head.start() for head in heads[1:]] + [len(seen)]
    for number, (head, end) in enumerate(zip(heads, ends, strict=True), start=1):
        yield Passage(f"{identity}/{number}", head["title"].strip(), seen[head.end() : end].strip())
