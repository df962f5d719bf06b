"""An environment of one's own: a search shows only passages that this episode has not shown before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from envs.config import EnvironmentSettings
from envs.search_env import SearchEnvironment
from sleuth.protocols import TextCodec
from sleuth.types import Action, Generation, Hit, Observation, Question, Search, Stop


class FreshPassages:
    """The search environment around a memory of what was shown; everything else is left to it."""

    def __init__(self, settings: EnvironmentSettings, codec: TextCodec) -> None:
        self._inner = SearchEnvironment(settings, codec)
        self._shown: set[str] = set()
        self.stop_strings = self._inner.stop_strings
        self.answer_opening = self._inner.answer_opening  # for information gain, see grpo.credit

    @property
    def total_tokens(self) -> int:
        return self._inner.total_tokens

    @property
    def thinking(self) -> bool:
        return self._inner.thinking

    def turn_tokens(self, room: int) -> int:
        return self._inner.turn_tokens(room)

    def reset(self, question: Question) -> Observation | Search:
        self._shown.clear()
        return self._inner.reset(question)

    def over(self, text: str, generation: Generation) -> bool:
        return self._inner.over(text, generation)

    def step(self, text: str) -> Action:
        return self._inner.step(text)

    def observe(self, hits: Sequence[Hit] | None, room: int) -> Observation | Stop:
        if hits is None:
            return self._inner.observe(None, room)
        fresh = [hit for hit in hits if hit.passage.id not in self._shown]
        self._shown.update(hit.passage.id for hit in fresh)
        return self._inner.observe([replace(hit, rank=rank) for rank, hit in enumerate(fresh, start=1)], room)
