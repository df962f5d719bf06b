"""Settings of demonstrations: where they come from, one class a kind of source. No torch here.

In a config a source is a path, or a mapping::

    sources: ["{out}/world/plans_train.jsonl", data/hotpot_train_v1.1.json]
    sources: [{path: data/wiki/qa/train.jsonl, kinds: [single, bridge], max_answer_words: 5, limit: 2000}]
    sources: [{path: data/wiki/qa/train.jsonl, mode: rag, top_k: 1, gold: true}]
    sources: [{kind: runs, path: data/gpt4_react.jsonl}, {kind: runs, path: other.jsonl, replay: true}]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from sleuth.kinds import KindSettings
from sleuth.settings import Count, Draw, Settings, Share


class DemonstrationSource(KindSettings):
    """A file that demonstrations are made from.

    ``limit``: of its first rows only, or with ``draw: seeded`` of rows from all over it, by the run's seed; the limit
    on all sources together then draws too.
    """

    NOUN: ClassVar[str] = "source of demonstrations"
    KINDS: ClassVar[Mapping[str, str]] = {
        "questions": "agent.demonstration_config:QuestionSource",
        "runs": "agent.demonstration_config:RunSource",
    }
    path: Annotated[str, Field(min_length=1)]
    limit: Count | None = None
    draw: Draw = "first"

    @classmethod
    def spelled_out(cls, value: Any) -> Any:
        """A path alone, or a mapping without ``kind``, is of questions."""
        if isinstance(value, str):
            return {"kind": "questions", "path": value}
        return {"kind": "questions", **value} if isinstance(value, Mapping) else value

    @property
    def searches(self) -> bool:
        """Whether making its demonstrations needs the retriever."""
        return True


class QuestionSource(DemonstrationSource):
    """Questions with gold passages, or plans that were written beforehand (``sleuth world`` writes some).

    ``kinds`` keeps only questions of these kinds, ``max_answer_words`` those with an answer that is so short,
    ``min_searches`` demonstrations that search so often: from 2, they show how to go on after a miss.

    ``mode`` ``rag`` shows how to read instead of how to search: the prompt has the first ``top_k`` passages that the
    question itself finds (None: as many as the environment's), and the demonstration answers from them, or is dropped.
    ``gold``: a gold passage with the answer is among them, at a seeded rank, if the question finds it at all.
    """

    mode: Literal["search", "rag"] = "search"
    top_k: Count | None = None
    gold: bool = False
    kinds: Annotated[list[str], Field(min_length=1)] | None = None
    max_answer_words: Count | None = None
    min_searches: Count | None = None

    @model_validator(mode="after")
    def _fits_the_mode(self) -> Self:
        if self.mode == "search" and (self.gold or self.top_k):
            raise ValueError("top_k and gold are of mode: rag; a search finds environment.top_k passages")
        if self.mode == "rag" and self.min_searches:
            raise ValueError("min_searches is of mode: search; mode: rag shows reading alone")
        return self


class RunSource(DemonstrationSource):
    """Runs of other policies, as JSON lines: ``tagged`` text, chat ``messages`` or ``turns`` (docs/formats.md).

    Only right runs with at least one search are kept, with the observations that they have seen. ``replay``: their
    searches are made with this run's retriever instead, and a run is dropped unless its answer stands in the hits.
    ``require_answer``: the same for their own observations.
    """

    replay: bool = False
    require_answer: bool = False

    @property
    def searches(self) -> bool:
        return self.replay


class DemonstrationSettings(Settings):
    """Demonstrations played through the real environment and retriever.

    ``limit`` is on those of all sources together. ``lazy`` is the fraction of demonstrations with several steps that
    stop early and answer with what they have found so far, ``lazy_kinds`` the kinds of questions in which they may;
    None: in all. Runs of others are taken as they are. ``require_titles``: all gold passages have to be found.
    """

    sources: list[SerializeAsAny[DemonstrationSource]] = Field(min_length=1)
    limit: Count | None = None
    lazy: Share = 0.0
    lazy_kinds: Annotated[list[str], Field(min_length=1)] | None = None
    require_titles: bool = True
