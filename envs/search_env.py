"""Think, search, read, answer: the search environment as a state machine without I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from envs.config import EnvironmentSettings
from envs.dialogue import Dialogue
from envs.grammar import CLOSE_THOUGHT, opens_thought
from envs.guard import guarded
from envs.observation import (
    Piece,
    block_within,
    cut_block,
    fill,
    information_block,
    joined,
    message_block,
    passages_in,
    returned_block,
    size,
    trusted,
)
from envs.prompts import Preset
from envs.protocols.base import TurnProtocol
from envs.search_r1 import with_question_mark
from envs.wording import PromptSettings
from sleuth.errors import ConfigError
from sleuth.hits import first_seen
from sleuth.protocols import TextCodec
from sleuth.types import (
    Action,
    Answer,
    Call,
    Generation,
    Hit,
    Invalid,
    Observation,
    Question,
    Search,
    Stop,
    ToolAnswer,
)

ANSWER_TOKENS = 32
"""Tokens that an observation must leave for the policy; with fewer the episode ends."""


class SearchEnvironment:
    """One episode. Budgets: searches, calls of other tools, turns (invalid ones count), tokens per observation and in
    total.
    """

    def __init__(self, settings: EnvironmentSettings, codec: TextCodec, protocol: TurnProtocol | None = None) -> None:
        self._settings = settings
        self._dialogue = Dialogue(settings, codec, protocol)
        self.stop_strings = self._dialogue.protocol.stop_strings
        self._preset = self._dialogue.preset
        self._codec = guarded(codec, self._preset, self._dialogue.protocol.tags)
        self._block = self._preset
        if self._dialogue.protocol.tool_messages:  # the message is a frame; only one's own stands inside it
            own = settings.prompts or PromptSettings()
            opening, closing = self._preset.opening, self._preset.closing
            self._block = replace(
                self._preset, opening=opening if own.opening else "", closing=closing if own.closing else ""
            )
        self._turns = 0
        self._searches = 0
        self._calls = 0
        self._too_long = False
        self._action: Action | None = None
        self._shown: set[str] = set()

    @property
    def total_tokens(self) -> int:
        return self._settings.total_tokens

    @property
    def thinking(self) -> bool:
        return self._dialogue.thinking

    def turn_tokens(self, room: int) -> int:
        return 0 if self._too_long else max(0, min(self._settings.turn_tokens, room))

    def reset(self, question: Question) -> Observation:
        """The prompt with the whole question; refusing one that is too long is up to the driver."""
        self._turns = self._searches = self._calls = 0
        self._action = None
        self._shown = set()
        template = self._dialogue.begin(self._preset.search)
        prompt = joined(fill(self._codec, template, {"question": asked(self._preset, question)}))
        self._too_long = exceeds(self._settings, prompt)
        return prompt

    def over(self, text: str, generation: Generation) -> bool:
        return self._dialogue.over(text, generation)

    def step(self, text: str) -> Action:
        """The action in a turn. What exceeds a budget is invalid and is not executed, not even in part."""
        self._turns += 1
        action = self._dialogue.parse(text)
        refused = self._refused(action)
        if isinstance(action, Search) and not refused:
            self._searches += len(action.queries)
        if isinstance(action, Call) and not refused:
            self._calls += 1
        self._action = Invalid(refused) if refused else action
        return self._action

    def _refused(self, action: Action) -> str:
        """Why the budgets do not allow ``action``; empty if they do."""
        if isinstance(action, Search):
            left = self._settings.searches - self._searches
            if left <= 0:
                return NO_SEARCHES
            if len(action.queries) > left:
                return f"it makes {len(action.queries)} searches, and only {left} may still be made"
        if isinstance(action, Call) and self._calls >= self._settings.calls:
            return "no calls of tools other than search are left"
        if isinstance(action, Search | Call) and self._turns >= self._settings.turns:
            what = "search" if isinstance(action, Search) else "call"
            return f"a {what} in the last turn: nobody would read what it finds"
        return ""

    def unwanted(self) -> frozenset[str] | None:
        """With ``unseen``, the ids of the passages that this episode has shown."""
        return frozenset(self._shown) if self._settings.unseen else None

    def observe(self, hits: Sequence[Hit] | None, room: int) -> Observation | Stop:
        if isinstance(self._action, Answer):
            return Stop("answer")
        if self._turns >= self._settings.turns:
            return Stop("turn_budget")
        if isinstance(self._action, Search):
            return self.observe_several([hits or ()], room)
        return hint(self._codec, self._dialogue, self._hint_text(), room)

    def observe_several(self, found: Sequence[Sequence[Hit]], room: int) -> Observation | Stop:
        """The hits of every query, which share the budget; what one leaves, the later ones have.

        A passage is shown once, where it was found first; the passages are numbered throughout.
        """
        note, room = self._note(len(found), room)
        budget = self._settings.observation_tokens
        if len(found) == 1:
            whole = cut_block if self._preset.hard_cut else information_block
            one = whole(self._codec, self._block, found[0], budget, room)
            return Stop("token_budget") if one is None else self._show([[*one, *note]])
        blocks: list[list[Piece]] = []
        first, left = 1, min(budget, room)
        for hits, new in zip(found, first_seen(found), strict=True):
            share = left // (len(found) - len(blocks))
            if new or not hits:
                block = block_within(self._codec, self._block, new, share, first)
            else:
                block = message_block(self._codec, self._block, FOUND_BEFORE, share)
            if block is None and room < budget:
                return Stop("token_budget")
            block = block or message_block(self._codec, self._block, NOT_SHOWN, share) or []
            blocks.append(block)
            first += len(new)
            left -= size(block)
        return self._show([*blocks[:-1], [*blocks[-1], *note]])

    def _show(self, blocks: Sequence[Sequence[Piece]]) -> Observation:
        self._shown.update(*map(passages_in, blocks))
        return self._dialogue.results(blocks)

    def answer_opening(self, transcript: str) -> str:
        """How an answer begins after ``transcript``, as demonstrations write it; an open thought is closed first."""
        mark = "sleuthsanswer"
        written = self._dialogue.protocol.write("", Answer(mark)).partition(mark)[0]
        opening = written.rpartition(CLOSE_THOUGHT)[2].lstrip()
        return (f"\n{CLOSE_THOUGHT}\n" if opens_thought(transcript) else "") + opening

    def observe_call(self, answer: ToolAnswer, room: int) -> Observation | Stop:
        note, room = self._note(1, room)
        budget = self._settings.observation_tokens
        block = returned_block(self._codec, self._block, answer.text, min(budget, room))
        if block is None and room >= budget:
            raise ConfigError(
                f"observation_tokens ({budget}) is too small for what a tool returns", "200 to 600 suits most policies"
            )
        return Stop("token_budget") if block is None else self._dialogue.results([[*block, *note]])

    def _note(self, count: int, room: int) -> tuple[list[Piece], int]:
        """What is said after results before the last turn, and the room for ``count`` blocks before it."""
        last = self._turns == self._settings.turns - 1 and self._preset.last_turn
        note = [trusted(self._codec, self._preset.last_turn)] if last else []
        return note, room - ANSWER_TOKENS - size(note) - self._dialogue.results_margin(count)

    def _hint_text(self) -> str:
        reason = self._action.reason if isinstance(self._action, Invalid) else ""
        if reason == NO_SEARCHES:
            return self._preset.searches_used
        note = self._preset.last_turn if self._turns == self._settings.turns - 1 else ""
        return self._preset.invalid.replace("{reason}", reason) + note


NO_SEARCHES = "no searches are left"
FOUND_BEFORE = "Only passages that an earlier search of this turn found as well."
NOT_SHOWN = "Too many searches in one turn to show what this one found."


def asked(preset: Preset, question: Question) -> str:
    """The question's text as the preset asks it."""
    return with_question_mark(question.text) if preset.question_mark else question.text


def exceeds(settings: EnvironmentSettings, prompt: Observation) -> bool:
    """Whether ``prompt`` is longer than it may be."""
    return settings.prompt_tokens is not None and len(prompt.token_ids) > settings.prompt_tokens


def hint(codec: TextCodec, dialogue: Dialogue, text: str, room: int) -> Observation | Stop:
    """Our own message to the policy, in full or not at all."""
    piece = trusted(codec, text)
    if len(piece.token_ids) + dialogue.margin() + ANSWER_TOKENS > room:
        return Stop("token_budget")
    return dialogue.join([piece])
