"""Think, search, read, answer: the search environment as a state machine without I/O."""

from __future__ import annotations

from collections.abc import Sequence

from envs.config import EnvironmentSettings
from envs.dialogue import Dialogue
from envs.grammar import STOP_STRINGS
from envs.observation import fill, information_block, joined, size, trusted
from envs.prompts import PRESETS
from sleuth.protocols import TextCodec
from sleuth.types import Action, Answer, Generation, Hit, Invalid, Observation, Question, Search, Stop

ANSWER_TOKENS = 32
"""Tokens that an observation must leave for the policy; with fewer the episode ends."""


class SearchEnvironment:
    """One episode. Budgets: searches, turns (invalid ones count), tokens per observation, tokens in total."""

    stop_strings: tuple[str, ...] = STOP_STRINGS

    def __init__(self, settings: EnvironmentSettings, codec: TextCodec) -> None:
        self._settings = settings
        self._codec = codec
        self._preset = PRESETS[settings.preset]
        self._dialogue = Dialogue(settings, codec)
        self._turns = 0
        self._searches = 0
        self._action: Action | None = None

    @property
    def total_tokens(self) -> int:
        return self._settings.total_tokens

    @property
    def thinking(self) -> bool:
        return self._dialogue.thinking

    def turn_tokens(self, room: int) -> int:
        return max(0, min(self._settings.turn_tokens, room))

    def reset(self, question: Question) -> Observation:
        """The prompt with the whole question; refusing one that is too long is up to the driver."""
        self._turns = self._searches = 0
        self._action = None
        template = self._dialogue.begin(self._preset.search, self._preset)
        return joined(fill(self._codec, template, {"question": question.text}))

    def over(self, text: str, generation: Generation) -> bool:
        return self._dialogue.over(text, generation)

    def step(self, text: str) -> Action:
        """The action in a turn. A search that exceeds the budget is invalid and is not executed."""
        self._turns += 1
        self._action = self._dialogue.parse(text)
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
        return hint(self._codec, self._dialogue, self._hint_text(), room)

    def answer_opening(self, transcript: str) -> str:
        """How an answer begins after ``transcript``, as demonstrations write it; an open thought is closed first."""
        return ("\n</think>\n" if transcript.rstrip().endswith("<think>") else "") + "<answer> "

    def _information(self, hits: Sequence[Hit], room: int) -> Observation | Stop:
        last = self._turns == self._settings.turns - 1 and self._preset.last_turn
        note = [trusted(self._codec, self._preset.last_turn)] if last else []
        room -= ANSWER_TOKENS + size(note) + self._dialogue.margin()
        block = information_block(self._codec, self._preset, hits, self._settings.observation_tokens, room)
        return Stop("token_budget") if block is None else self._dialogue.join([*block, *note])

    def _hint_text(self) -> str:
        reason = self._action.reason if isinstance(self._action, Invalid) else ""
        if reason == NO_SEARCHES:
            return self._preset.searches_used
        note = self._preset.last_turn if self._turns == self._settings.turns - 1 else ""
        return self._preset.invalid.replace("{reason}", reason) + note


NO_SEARCHES = "no searches are left"


def hint(codec: TextCodec, dialogue: Dialogue, text: str, room: int) -> Observation | Stop:
    """Our own message to the policy, in full or not at all."""
    piece = trusted(codec, text)
    if len(piece.token_ids) + dialogue.margin() + ANSWER_TOKENS > room:
        return Stop("token_budget")
    return dialogue.join([piece])
