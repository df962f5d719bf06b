"""Think, search, read, answer: the search environment as a state machine without I/O."""

from __future__ import annotations

from collections.abc import Sequence

from envs.config import EnvironmentSettings
from envs.grammar import STOP_STRINGS, parse_turn
from envs.guard import guarded
from envs.observation import cut_block, fill, information_block, joined, size, trusted
from envs.prompts import Preset, prompt_text
from envs.search_r1 import parse_lenient, with_question_mark
from sleuth.protocols import TextCodec
from sleuth.types import Action, Answer, Hit, Invalid, Observation, Question, Search, Stop

ANSWER_TOKENS = 32
"""Tokens that an observation must leave for the policy; with fewer the episode ends."""


class SearchEnvironment:
    """One episode. Budgets: searches, turns (invalid ones count), tokens per observation, tokens in total."""

    stop_strings: tuple[str, ...] = STOP_STRINGS

    def __init__(self, settings: EnvironmentSettings, codec: TextCodec) -> None:
        self._settings = settings
        self._preset = settings.wording()
        self._codec = guarded(codec, self._preset)
        self._turns = 0
        self._searches = 0
        self._action: Action | None = None

    @property
    def total_tokens(self) -> int:
        return self._settings.total_tokens

    def turn_tokens(self, room: int) -> int:
        return tokens_of_turn(self._settings, self._turns, room)

    def reset(self, question: Question) -> Observation:
        """The prompt with the whole question; refusing one that is too long is up to the driver."""
        self._turns = self._searches = 0
        self._action = None
        template = prompt_text(self._preset.search, self._preset, self._settings.chat, self._codec)
        return joined(fill(self._codec, template, {"question": asked(self._preset, question)}))

    def step(self, text: str) -> Action:
        """The action in a turn. A search that exceeds the budget is invalid and is not executed."""
        self._turns += 1
        self._action = action_in(self._preset, text)
        if isinstance(self._action, Search):
            if self._searches >= self._settings.searches:
                self._action = Invalid(NO_SEARCHES)
            elif self._turns >= self._settings.turns:
                self._action = Invalid("a search in the last turn: nobody would read what it finds")
            else:
                self._searches += 1
        return self._action

    def observe(self, hits: Sequence[Hit] | None, room: int) -> Observation | Stop:
        if isinstance(self._action, Answer):
            return Stop("answer")
        if self._turns >= self._settings.turns:
            return Stop("turn_budget")
        if isinstance(self._action, Search):
            return self._information(hits or (), room)
        return hint(self._codec, self._hint_text(), room)

    def _information(self, hits: Sequence[Hit], room: int) -> Observation | Stop:
        last = self._turns == self._settings.turns - 1 and self._preset.last_turn
        note = [trusted(self._codec, self._preset.last_turn)] if last else []
        room -= ANSWER_TOKENS + size(note)
        make = cut_block if self._preset.hard_cut else information_block
        block = make(self._codec, self._preset, hits, self._settings.observation_tokens, room)
        return Stop("token_budget") if block is None else joined([*block, *note])

    def _hint_text(self) -> str:
        reason = self._action.reason if isinstance(self._action, Invalid) else ""
        if reason == NO_SEARCHES:
            return self._preset.searches_used
        note = self._preset.last_turn if self._turns == self._settings.turns - 1 else ""
        return self._preset.invalid.replace("{reason}", reason) + note


NO_SEARCHES = "no searches are left"


def action_in(preset: Preset, text: str) -> Action:
    """The action in a turn, by the preset's grammar."""
    return parse_lenient(text) if preset.lenient else parse_turn(text)


def asked(preset: Preset, question: Question) -> str:
    """The question's text as the preset asks it."""
    return with_question_mark(question.text) if preset.question_mark else question.text


def tokens_of_turn(settings: EnvironmentSettings, turns: int, room: int) -> int:
    """Tokens that the next turn may have; none before the first if the prompt is too long."""
    if turns == 0 and settings.prompt_tokens is not None and settings.total_tokens - room > settings.prompt_tokens:
        return 0
    return max(0, min(settings.turn_tokens, room))


def hint(codec: TextCodec, text: str, room: int) -> Observation | Stop:
    """Our own message to the policy, in full or not at all."""
    piece = trusted(codec, text)
    if len(piece.token_ids) + ANSWER_TOKENS > room:
        return Stop("token_budget")
    return joined([piece])
