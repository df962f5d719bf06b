"""Reranks the ``depth`` best hits of a retriever with a model that reads query and passage together.

Each query is scored only against its own hits; the pairs of all queries share batches, sorted by length.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from hub.models import ModelKind, loading
from retrieval.combine.parts import RERANK_DEPTH, check_depth, reach
from retrieval.documents import documents_of
from retrieval.indexes import check_k
from retrieval.passages import passage_text
from retrieval.size import size_of
from sleuth.artifacts import fingerprint_of
from sleuth.errors import ArtifactError, ConfigError, RetrieverError
from sleuth.hits import distinct
from sleuth.protocols import Documents, Retriever
from sleuth.types import Hit

BATCH = 32
CROSS_ENCODER = ModelKind("cross-encoder", ArtifactError)


class PairScorer(Protocol):
    """Scores (query, passage) pairs independently."""

    @property
    def fingerprint(self) -> str: ...

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """One score per pair, in order; higher is better."""
        ...


class RerankRetriever:
    """The hits of ``inner``, at most ``depth`` of them, reordered by ``scorer``."""

    def __init__(self, inner: Retriever, scorer: PairScorer, *, depth: int = RERANK_DEPTH) -> None:
        check_depth(depth)
        self.inner = inner
        self.scorer = scorer
        self.depth = depth

    @property
    def fingerprint(self) -> str:
        """Digest of the inner retriever, the model and the depth."""
        inner, model = self.inner.fingerprint, self.scorer.fingerprint
        return fingerprint_of({"kind": "rerank", "inner": inner, "model": model, "depth": self.depth})

    @property
    def passages(self) -> int | None:
        """Passages searched; None if the inner retriever does not say."""
        return size_of(self.inner)

    @property
    def documents(self) -> Documents | None:
        """Reads whole documents; None if the inner retriever cannot."""
        return documents_of(self.inner)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """At most ``k`` hits per query with the model's scores, ties in the inner order."""
        k = check_k(k, self.passages)
        found = [distinct(hits) for hits in self.inner.search(queries, reach(self.inner, self.depth))]
        pairs = [(query, passage_text(hit.passage)) for query, hits in zip(queries, found, strict=True) for hit in hits]
        scores = self.scorer.score(pairs) if pairs else []
        if len(scores) != len(pairs) or not all(map(math.isfinite, scores)):
            raise RetrieverError("the reranker returned no finite score for some passages")
        remaining = iter(scores)
        return [_in_order([(next(remaining), hit) for hit in hits], k) for hits in found]


class CrossEncoderScorer:
    """A sentence-transformers CrossEncoder with one label, from a folder or the hub.

    Scores are its logits: an activation such as a sigmoid would turn close scores into ties.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        batch_size: int = BATCH,
        max_length: int | None = None,
        device: str | None = None,
    ) -> None:
        self._model = _load(model, max_length, device)
        self._batch_size = batch_size
        self._fingerprint = _identify(self._model)
        self._lock = threading.Lock()  # fast tokenizers do not allow two threads at once

    @property
    def fingerprint(self) -> str:
        """Digest of the weights, the configuration and the maximum length."""
        return self._fingerprint

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        import torch

        with self._lock:
            scores = self._model.predict(
                [(_clean(query), _clean(text)) for query, text in pairs],
                batch_size=self._batch_size,
                activation_fn=torch.nn.Identity(),
                show_progress_bar=False,
            )
        return [float(score) for score in scores.reshape(-1)]


def _clean(text: str) -> str:
    """``text`` as a tokenizer can read it: lone surrogates are replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _in_order(scored: list[tuple[float, Hit]], k: int) -> list[Hit]:
    best = sorted(scored, key=lambda pair: (-pair[0], pair[1].rank))[:k]
    return [Hit(hit.passage, score, rank) for rank, (score, hit) in enumerate(best, start=1)]


def _load(model: str | Path, max_length: int | None, device: str | None) -> Any:
    from sentence_transformers import CrossEncoder

    from retrieval.encoders.quiet import quiet_transformers

    looks_local = Path(model).is_absolute() or str(model).startswith(".") or Path(model).exists()
    if looks_local and not (Path(model) / "config.json").is_file():
        raise ArtifactError(f"{model} is not a cross-encoder: it has no config.json", "give its folder or hub name")
    with loading(str(model), CROSS_ENCODER), quiet_transformers():
        loaded = CrossEncoder(str(model), max_length=max_length, device=device)
    if not _has_head(loaded):
        raise ArtifactError(
            f"{model} is no cross-encoder: its weights are of {', '.join(loaded.config.architectures)}, without a head",
            "train one with: sleuth train-retriever",
        )
    if loaded.num_labels != 1:
        raise ConfigError(f"{model} has {loaded.num_labels} labels, a reranker must have one", "choose another model")
    return loaded


def _has_head(model: Any) -> bool:
    """Whether the classification head has trained weights; a missing one would be initialised at random."""
    architectures = getattr(model.config, "architectures", None) or ()
    headed = any("ForSequenceClassification" in name for name in architectures)
    return headed or not architectures or any(type(module).__name__ == "LogitScore" for module in model.children())


def _identify(model: Any) -> str:
    import hashlib

    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().view(-1).float().numpy().tobytes())
    return fingerprint_of({"weights": weights.hexdigest(), "max_length": model.max_length})
