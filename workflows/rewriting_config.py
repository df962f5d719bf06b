"""Settings of a retriever that rewrites a query before it searches. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from agent.writing.config import AnyWriter
from retrieval.combine.config import Part
from retrieval.config import Progress, RetrieverSettings
from sleuth.protocols import Retriever
from sleuth.settings import Count


class RewriteSettings(RetrieverSettings):
    """A language model thinks about the query first; what it writes is searched (as on BRIGHT, Su et al. 2025).

    ``policy``: the writer, as in ``sleuth synthesize``: a model, a policy's settings, or a server.
    """

    kind: Literal["rewrite"] = "rewrite"
    policy: AnyWriter
    inner: Part
    """The retriever that searches for what is written."""
    template: str = "search"
    """Name of a prompt template with a step ``rewrite``, or a YAML file."""
    keep_query: bool = True
    """The query itself is searched together with what is written about it."""
    max_tokens: Count | None = None
    temperature: float = Field(default=0.0, ge=0.0)
    seed: int = 0
    rewrites: Path | None = None
    """File in which rewritten queries are kept from one run to the next; None: in memory alone."""

    @property
    def inside(self) -> Sequence[RetrieverSettings]:
        return (self.inner,)

    @property
    def usual_patience_s(self) -> float:
        return 900.0  # a model writes for every query

    @property
    def most_hits(self) -> int | None:
        return self.inner.most_hits

    def open(self, progress: Progress, /) -> Retriever:
        from workflows.rewriting import Rewriter, RewriteRetriever

        rewriter = Rewriter(
            self.policy.open(),
            self.template,
            keep_query=self.keep_query,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            seed=self.seed,
            path=self.rewrites,
            made_by=self.policy.identity,
        )
        return RewriteRetriever(self.inner.open(progress), rewriter)
