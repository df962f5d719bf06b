"""The RAG baseline: retrieve once with the question itself, read, answer."""

from __future__ import annotations

from collections.abc import Sequence

from envs.config import EnvironmentSettings
from envs.direct_env import DirectEnvironment
from envs.guard import guarded
from envs.observation import fill, information_block, joined, size
from envs.protocols.base import TurnProtocol
from envs.search_env import ANSWER_TOKENS, asked
from sleuth.protocols import TextCodec
from sleuth.types import Action, Generation, Hit, Observation, Question, Search, Stop


class RagEnvironment:
    """One episode: the passages are part of the prompt; after that it behaves like the direct environment."""

    def __init__(self, settings: EnvironmentSettings, codec: TextCodec, protocol: TurnProtocol | None = None) -> None:
        self._settings = settings
        self._after = DirectEnvironment(settings, codec, protocol)
        self._preset = self._after.preset
        self._codec = guarded(codec, self._preset)
        self.stop_strings: tuple[str, ...] = self._after.stop_strings
        self._waiting: Question | None = None

    @property
    def total_tokens(self) -> int:
        return self._settings.total_tokens

    @property
    def thinking(self) -> bool:
        return self._after.thinking

    def turn_tokens(self, room: int) -> int:
        return self._after.turn_tokens(room)

    def reset(self, question: Question) -> Search:
        """The search to make first; its hits become part of the prompt."""
        self._waiting = question
        return Search(question.text)

    def over(self, text: str, generation: Generation) -> bool:
        return self._after.over(text, generation)

    def step(self, text: str) -> Action:
        return self._after.step(text)

    def observe(self, hits: Sequence[Hit] | None, room: int) -> Observation | Stop:
        if self._waiting is None:
            return self._after.observe(hits, room)
        question, self._waiting = self._waiting, None
        return self._prompt(question, hits or (), room)

    def _prompt(self, question: Question, hits: Sequence[Hit], room: int) -> Observation | Stop:
        """The question in full, and passages in what remains of ``room``."""
        template = self._after.begin(self._preset.rag)
        text = asked(self._preset, question)
        bare = size(fill(self._codec, template, {"question": text, "passages": ()}))
        room = min(room - ANSWER_TOKENS, self._settings.prompt_tokens or room) - bare
        block = information_block(self._codec, self._preset, hits, self._settings.observation_tokens, room)
        if block is None:
            return Stop("prompt_too_long")
        return joined(fill(self._codec, template, {"question": text, "passages": block}))
