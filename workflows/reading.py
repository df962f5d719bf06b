"""Demonstrations of reading: the prompt has passages, found beforehand, and the demonstrator answers from them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.demonstration_config import QuestionSource
from sleuth.progress import plain_progress
from sleuth.types import Hit, Trajectory
from workflows.context import StageContext

if TYPE_CHECKING:
    from agent.codec import HFCodec
    from agent.demonstrate import Played
    from envs.searcher import Searcher
    from sleuth.protocols import Retriever

log = logging.getLogger("sleuth.demonstrations")
_DEPTH, _BATCH = 50, 64
"""How deep a gold passage is looked for, and how many questions at once."""


@dataclass(frozen=True, slots=True)
class Given:
    """A retriever that knows beforehand what each question is given."""

    hits: Mapping[str, tuple[Hit, ...]]
    fingerprint: str = "given"

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [list(self.hits[query][:k]) for query in queries]


def play_readers(
    run: StageContext, codec: HFCodec, source: QuestionSource, chosen: Sequence[Searcher], retriever: Retriever
) -> list[tuple[str, Played | str]]:
    """A demonstration of reading for each question of ``chosen``, with its kind, or why there is none."""
    from agent.demonstrate import answer_stands_in, play
    from envs.factory import make_environment
    from envs.lazy import kind_of
    from envs.protocols.base import open_protocol
    from envs.queries import shown_part, spaced
    from envs.reader import Reader

    environment = run.settings.environment
    k = source.top_k or environment.top_k
    environment = environment.model_copy(update={"kind": "rag", "top_k": k})
    given = _given(run, source, chosen, retriever, k)
    readers = [Reader(one.solution, given[one.question.text], one.reserved) for one in chosen]

    def why(trajectory: Trajectory) -> str:
        prompt = spaced(codec.decode(trajectory.segments[0].token_ids))
        shown = "\n".join(shown_part(hit.passage.text, prompt) for hit in trajectory.given)  # not the question's words
        return "" if answer_stands_in(trajectory, shown) else "its answer does not stand in what was read"

    with plain_progress("demonstrations of reading", log.info) as told:
        write, make = open_protocol(environment).write, make_environment(environment, codec)
        played = play(readers, codec, make, Given(given), k, told, write=write, why=why)
    return [(f"{kind_of(one.trajectory.question)} (read)", one) for one in played]


def _given(
    run: StageContext, source: QuestionSource, chosen: Sequence[Searcher], retriever: Retriever, k: int
) -> dict[str, tuple[Hit, ...]]:
    """What each question is given, by its text."""
    from envs.reader import with_gold

    given: dict[str, tuple[Hit, ...]] = {}
    for start in range(0, len(chosen), _BATCH):
        some = [one.question for one in chosen[start : start + _BATCH]]
        found = retriever.search([question.text for question in some], _DEPTH if source.gold else k)
        for question, hits in zip(some, found, strict=True):
            wanted = with_gold(question, hits, k, run.settings.seed) if source.gold else tuple(hits)
            given.setdefault(question.text, wanted)
    return given
