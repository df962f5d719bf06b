"""Answering from memory, directly or after thinking: the baselines without a search engine."""

from __future__ import annotations

from collections.abc import Sequence

from envs.config import EnvironmentSettings
from envs.dialogue import Dialogue
from envs.guard import guarded
from envs.observation import fill, joined
from envs.protocols.base import TurnProtocol
from envs.search_env import asked, exceeds, hint
from sleuth.protocols import TextCodec
from sleuth.types import Action, Answer, Call, Generation, Hit, Invalid, Observation, Question, Search, Stop


class DirectEnvironment:
    """One episode: prompt, then answer. ``kind: cot`` asks for a thought first; ``turns`` is the number of attempts."""

    def __init__(self, settings: EnvironmentSettings, codec: TextCodec, protocol: TurnProtocol | None = None) -> None:
        self._settings = settings
        self._dialogue = Dialogue(settings, codec, protocol)
        self.stop_strings = self._dialogue.protocol.stop_strings
        self.preset = self._dialogue.preset
        self._codec = guarded(codec, self.preset)
        self._turns = 0
        self._too_long = False
        self._action: Action | None = None

    @property
    def total_tokens(self) -> int:
        return self._settings.total_tokens

    @property
    def thinking(self) -> bool:
        return self._dialogue.thinking

    def turn_tokens(self, room: int) -> int:
        return 0 if self._too_long else max(0, min(self._settings.turn_tokens, room))

    def reset(self, question: Question) -> Observation:
        template = self.begin(self.preset.cot if self._settings.kind == "cot" else self.preset.direct)
        prompt = joined(fill(self._codec, template, {"question": asked(self.preset, question)}))
        self._too_long = exceeds(self._settings, prompt)
        return prompt

    def begin(self, wording: str) -> str:
        """Start an episode whose prompt says ``wording``; returns the whole prompt, slots unfilled."""
        self._turns = 0
        self._too_long = False
        self._action = None
        return self._dialogue.begin(wording)

    def over(self, text: str, generation: Generation) -> bool:
        return self._dialogue.over(text, generation)

    def step(self, text: str) -> Action:
        """The action in a turn; a search is invalid here."""
        self._turns += 1
        action = self._dialogue.parse(text)
        self._action = Invalid("there is no search engine") if isinstance(action, Search | Call) else action
        return self._action

    def observe(self, hits: Sequence[Hit] | None, room: int) -> Observation | Stop:
        del hits
        if isinstance(self._action, Answer):
            return Stop("answer")
        if self._turns >= self._settings.turns:
            return Stop("turn_budget")
        reason = self._action.reason if isinstance(self._action, Invalid) else ""
        return hint(self._codec, self._dialogue, self.preset.answer_only.replace("{reason}", reason), room)
