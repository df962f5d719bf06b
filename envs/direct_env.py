"""Answering from memory, directly or after thinking: the baselines without a search engine."""

from __future__ import annotations

from collections.abc import Sequence

from envs.config import EnvironmentSettings
from envs.grammar import STOP_STRINGS
from envs.guard import guarded
from envs.observation import fill, joined
from envs.prompts import prompt_text
from envs.search_env import action_in, asked, hint, tokens_of_turn
from sleuth.protocols import TextCodec
from sleuth.types import Action, Answer, Hit, Invalid, Observation, Question, Search, Stop


class DirectEnvironment:
    """One episode: prompt, then answer. ``kind: cot`` asks for a thought first; ``turns`` is the number of attempts."""

    stop_strings: tuple[str, ...] = STOP_STRINGS

    def __init__(self, settings: EnvironmentSettings, codec: TextCodec) -> None:
        self._settings = settings
        self._preset = settings.wording()
        self._codec = guarded(codec, self._preset)
        self._turns = 0
        self._action: Action | None = None

    @property
    def total_tokens(self) -> int:
        return self._settings.total_tokens

    def turn_tokens(self, room: int) -> int:
        return tokens_of_turn(self._settings, self._turns, room)

    def reset(self, question: Question) -> Observation:
        self._turns = 0
        self._action = None
        chosen = self._preset.cot if self._settings.kind == "cot" else self._preset.direct
        template = prompt_text(chosen, self._preset, self._settings.chat, self._codec)
        return joined(fill(self._codec, template, {"question": asked(self._preset, question)}))

    def step(self, text: str) -> Action:
        """The action in a turn; a search is invalid here."""
        self._turns += 1
        action = action_in(self._preset, text)
        self._action = Invalid("there is no search engine") if isinstance(action, Search) else action
        return self._action

    def observe(self, hits: Sequence[Hit] | None, room: int) -> Observation | Stop:
        del hits
        if isinstance(self._action, Answer):
            return Stop("answer")
        if self._turns >= self._settings.turns:
            return Stop("turn_budget")
        reason = self._action.reason if isinstance(self._action, Invalid) else ""
        return hint(self._codec, self._preset.answer_only.replace("{reason}", reason), room)
