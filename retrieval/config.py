"""Settings of a retriever. Imports nothing heavy.

In a config a retriever is the path of an index, or a mapping::

    retriever: runs/hotpotqa/index
    retriever: {kind: bm25, index: runs/hotpotqa/index, corpus: data/corpus.jsonl, k1: 1.2, b: 0.75}
    retriever: {kind: dense, index: runs/dense, encoder: runs/dpr/encoder, corpus: data/corpus.jsonl, dtype: float16}
    retriever: {kind: faiss, faiss_file: e5_Flat.index, corpus: wiki-18.jsonl, encoder: {backbone: intfloat/e5-base-v2}}
    retriever: {kind: lucene, index: lucene-index.wiki}
    retriever: {kind: hybrid, parts: [runs/bm25, runs/dense], fusion: rrf}
    retriever: {kind: rerank, model: runs/cross-encoder, inner: {kind: hybrid, parts: [a, b]}, depth: 50}
    retriever: {kind: remote, url: "http://127.0.0.1:8000"}, or the URL alone
    retriever: {kind: "my_package.module:Class", options: {url: "http://..."}}
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from retrieval.encoders.config import EncoderChoice
from sleuth.errors import did_you_mean
from sleuth.settings import Settings

KINDS = ("bm25", "dense", "faiss", "lucene", "hybrid", "rerank", "remote")
COMPOSED = {
    "hybrid": frozenset({"parts", "fusion", "weights", "rrf_k", "depth"}),
    "rerank": frozenset({"model", "inner", "depth"}),
    "remote": frozenset({"url"}),
    "faiss": frozenset({"faiss_file", "corpus", "encoder", "ef_search", "nprobe"}),
}
"""Kinds that have no index of their own, and the settings that belong to each."""
SHARED: frozenset[str] = frozenset({"corpus", "encoder", "ef_search", "nprobe"})
"""Settings of composed kinds that kinds with an index take too."""
INDEXED = {
    "bm25": frozenset({"k1", "b", "threads"}),
    "lucene": frozenset({"k1", "b", "threads"}),
    "dense": frozenset({"encoder", "index_type", "dtype", "ef_search", "nprobe"}),
}
"""Kinds with an index of their own, and what belongs to each besides index and corpus."""
HYBRID_DEPTH = 100
RERANK_DEPTH = 50
"""Hits that are fused or ranked again where ``depth`` does not say."""
MADE_AS = {"index_type": "flat", "dtype": "float32"}
"""How a dense index is made where nothing is said. Runs of before say so for retrievers of every kind."""
PATIENCE = frozenset({"cache", "timeout_s", "retries", "backoff_s", "breaker_failures", "breaker_cooldown_s"})
"""Settings of any retriever, given once for the whole of it."""

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

    encoder: EncoderChoice | None = None
    """dense, faiss: folder or hub name of the encoder; None: the one that the index was made with."""
    index_type: Literal["flat", "hnsw", "ivfpq"] | None = None
    """dense: what the index is, or how one that does not exist yet is made; None: as it is, flat for a new one."""
    dtype: Literal["float32", "float16", "int8"] | None = None
    """dense: how it keeps its vectors; None: as it does, float32 for a new one."""
    ef_search: Annotated[int, Field(ge=1)] | None = None
    """HNSW: candidates looked at by a search; None: as the index was built."""
    nprobe: Annotated[int, Field(ge=1)] | None = None
    """IVF: cells looked at by a search; None: as the index was built."""
    faiss_file: Path | None = None
    """faiss: an index that others made; its vector i belongs to row i of ``corpus``."""

    parts: list[RetrieverSettings] = Field(default_factory=list)
    """hybrid: the retrievers whose hits are fused."""
    fusion: Literal["rrf", "sum", "dpr"] = "rrf"
    """hybrid: by reciprocal rank, by normalised weighted sum, or as DPR does: BM25 + 1.1 * dense."""
    weights: list[NotNegative] | None = None
    """hybrid: one a part; None: equal ones, and 1 and 1.1 for dpr."""
    rrf_k: NotNegative = 60.0
    """hybrid: the constant of reciprocal-rank fusion."""
    inner: RetrieverSettings | None = None
    """rerank: the retriever whose hits are ranked again."""
    model: str | None = None
    """rerank: folder or hub name of the cross-encoder."""
    depth: Annotated[int, Field(ge=1)] | None = None
    """Hits asked of each part (hybrid, 100) or ranked again (rerank, 50); no more than those are returned."""
    url: str | None = None
    """remote: the address of a retriever service, `sleuth serve-retriever` or Search-R1's own."""

    cache: Annotated[int, Field(ge=0)] = 10_000
    """Queries whose hits are kept in memory."""
    timeout_s: Positive | None = None
    """Seconds that one search may take; None: 30, and 900 where a reranker reads every pair."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Further attempts after a failed one."""
    backoff_s: NotNegative = 0.2
    """Pause before the first retry; it doubles each time, with jitter."""
    breaker_failures: Annotated[int, Field(ge=1)] = 5
    """Failed attempts in a row after which searches fail at once."""
    breaker_cooldown_s: NotNegative = 10.0
    """Seconds after which one search is let through to see whether the retriever is back."""

    @property
    def patience_s(self) -> float:
        """Seconds that one search may take."""
        return self.timeout_s or (900.0 if self._reranks() else 30.0)

    def _reranks(self) -> bool:
        parts = [*self.parts, *([self.inner] if self.inner else [])]
        return self.kind == "rerank" or any(part._reranks() for part in parts)

    @model_validator(mode="before")
    @classmethod
    def _path_is_index(cls, value: Any) -> Any:
        if isinstance(value, str) and value.startswith(("http://", "https://")):
            return {"kind": "remote", "url": value}
        return {"index": value} if isinstance(value, str | Path) else value

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, kind: str | None) -> str | None:
        if kind is not None and ":" not in kind and kind not in KINDS:
            raise ValueError(f"unknown kind of retriever; {did_you_mean(kind, KINDS)}")
        return kind

    @model_validator(mode="after")
    def _has_a_source(self) -> RetrieverSettings:
        needed = {"hybrid": "parts", "rerank": "inner", "remote": "url", "faiss": "faiss_file"}.get(
            self.kind or "", "index"
        )
        if not getattr(self, needed) and (self.kind is None or ":" not in self.kind):
            raise ValueError(f"{needed} is missing: {_WHAT[needed]}")
        if self.kind == "rerank" and self.model is None:
            raise ValueError("model is missing: folder or hub name of the cross-encoder")
        if self.kind == "faiss" and (self.corpus is None or self.encoder is None):
            raise ValueError("a faiss file needs a corpus, whose rows its vectors are, and the encoder that made them")
        return self

    @model_validator(mode="after")
    def _no_setting_is_in_vain(self) -> RetrieverSettings:
        foreign = self.in_vain(self.kind)
        if foreign:
            raise ValueError(f"{foreign} does nothing for a retriever of kind {self.kind or 'index'}; leave it out")
        for part in [*self.parts, *([self.inner] if self.inner else [])]:
            kept = {"timeout_s"} if part.kind == "remote" else set()  # of one request over the wire
            lost = sorted(name for name in PATIENCE - kept if not _is_default(part, name))
            if lost:
                raise ValueError(f"{lost[0]} of a part does nothing; set it for the whole retriever")
        return self

    def in_vain(self, kind: str | None) -> str | None:
        """The first setting that means nothing to a retriever of ``kind``, None being an index of any kind."""
        given = {name for name in type(self).model_fields if not _is_default(self, name)}
        given -= {name for name, usual in MADE_AS.items() if getattr(self, name) == usual}
        own = COMPOSED.get(kind or "")
        if own is not None:
            foreign = given - own - PATIENCE - {"kind"}
        else:
            others = {**COMPOSED, **INDEXED} if kind in INDEXED else COMPOSED
            allowed = INDEXED.get(kind or "", SHARED) | {"corpus"}
            foreign = given & frozenset().union(*others.values()) - allowed
        return min(foreign, default=None)

    @property
    def most_hits(self) -> int | None:
        """How many hits of a query a composed retriever orders; None where nothing but its passages limits them."""
        if self.kind == "rerank" and self.inner is not None:
            return min(self.depth or RERANK_DEPTH, self.inner.most_hits or sys.maxsize)
        if self.kind == "hybrid":
            deepest = max((part.most_hits or sys.maxsize for part in self.parts), default=sys.maxsize)
            return min(self.depth or HYBRID_DEPTH, deepest)
        return None


def _is_default(settings: Settings, name: str) -> bool:
    default = type(settings).model_fields[name].get_default(call_default_factory=True)
    return bool(getattr(settings, name) == default)


_WHAT = {
    "index": "the folder to search",
    "parts": "two or more retrievers",
    "inner": "the retriever whose hits are ranked again",
    "url": "where the service listens",
    "faiss_file": "the index that others made",
}
