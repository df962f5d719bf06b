"""Settings of a retriever. Imports nothing heavy.

In a config a retriever is the path of an index, or a mapping::

    retriever: runs/hotpotqa/index
    retriever: {kind: bm25, index: runs/hotpotqa/index, corpus: data/corpus.jsonl, k1: 1.2, b: 0.75}
    retriever: {kind: "my_package.module:Class", options: {url: "http://..."}}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from sleuth.errors import did_you_mean
from sleuth.settings import Settings

KINDS = ("bm25",)

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class RetrieverSettings(Settings):
    """What to search, and how patient to be with it."""

    kind: str | None = None
    """bm25, or ``package.module:Class`` of one's own; None: what the index says it is."""
    index: Path | None = None
    """Folder of the index."""
    corpus: Path | None = None
    """Passages that the index is made from when it does not exist; an index of other passages is refused."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of a class given as ``kind``."""

    k1: NotNegative | None = None
    """BM25 term saturation; None: as the index was built."""
    b: Annotated[float, Field(ge=0, le=1)] | None = None
    """BM25 length normalisation; None: as the index was built."""
    threads: Annotated[int, Field(ge=1)] = 2
    """1 searches query by query; more lets a batch run in parallel."""

    cache: Annotated[int, Field(ge=0)] = 10_000
    """Queries whose hits are kept in memory."""
    timeout_s: Positive = 30.0
    """Seconds that one search may take."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Further attempts after a failed one."""
    backoff_s: NotNegative = 0.2
    """Pause before the first retry; it doubles each time, with jitter."""
    breaker_failures: Annotated[int, Field(ge=1)] = 5
    """Failed attempts in a row after which searches fail at once."""
    breaker_cooldown_s: NotNegative = 10.0
    """Seconds after which one search is let through to see whether the retriever is back."""

    @model_validator(mode="before")
    @classmethod
    def _path_is_index(cls, value: Any) -> Any:
        return {"index": value} if isinstance(value, str | Path) else value

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, kind: str | None) -> str | None:
        if kind is not None and ":" not in kind and kind not in KINDS:
            raise ValueError(f"unknown kind of retriever; {did_you_mean(kind, KINDS)}")
        return kind

    @model_validator(mode="after")
    def _has_a_source(self) -> RetrieverSettings:
        if self.index is None and (self.kind is None or ":" not in self.kind):
            raise ValueError("index is missing: the folder to search")
        return self
