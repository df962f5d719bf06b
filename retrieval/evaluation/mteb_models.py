"""Encoders and retrievers as models of mteb (2.x): its runner searches, ranks and scores with them.

An encoder reads queries and documents as it was trained to, with its own prompts; texts that are neither, as in STS,
are read as queries, which is what E5 and its successors prescribe for symmetric tasks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from retrieval.evaluation.mteb_results import mteb_model_name
from sleuth.protocols import Retriever

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from retrieval.encoders.family import PassageEncoder

BATCH = 64

OpenOn = Callable[[str, Path], Retriever]
"""Opens a retriever for (name of a set, its corpus)."""


class EncoderModel:
    """A dense encoder; what mteb calls an ``EncoderProtocol``."""

    def __init__(self, encoder: PassageEncoder, name: str) -> None:
        self._encoder = encoder
        self.mteb_model_meta = model_meta(name, encoder.fingerprint)

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: Any = None, batch_size: int = 32, **_kwargs: Any
    ) -> NDArray[Any]:
        """Vectors [texts, d] of a loader of batches, in order; ``prompt_type``: query, document or None."""
        import numpy as np

        role = "passage" if str(getattr(prompt_type, "value", prompt_type)) == "document" else "query"
        found = [self._encoder.encode_texts(list(batch["text"]), role, batch_size) for batch in inputs]  # type: ignore[arg-type]
        return np.concatenate([encoded.values.numpy() for encoded in found])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Inner products [n, m]; those of unit vectors are cosines."""
        return _tensor(embeddings1) @ _tensor(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Inner products [n] of the rows."""
        return (_tensor(embeddings1) * _tensor(embeddings2)).sum(-1)


class RetrieverModel:
    """A retriever of any kind, opened anew for each corpus; what mteb calls a ``SearchProtocol``."""

    def __init__(self, open_on: OpenOn, name: str, revision: str) -> None:
        self._open_on = open_on
        self._retriever: Retriever | None = None
        self._passages = 0
        self.mteb_model_meta = model_meta(name, revision)

    def index(self, corpus: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, **_kwargs: Any) -> None:
        parts = (task_metadata.name, *(() if hf_subset == "default" else (hf_subset,)), hf_split)
        with TemporaryDirectory(prefix="sleuth-mteb-") as folder:
            path = Path(folder) / "corpus.jsonl"
            with path.open("w", encoding="utf-8") as file:
                for row in corpus:
                    passage = {"_id": row["id"], "title": row.get("title") or "", "text": row["text"]}
                    file.write(json.dumps(passage) + "\n")
            self._retriever, self._passages = self._open_on("-".join(parts), path), len(corpus)

    def search(
        self, queries: Any, *, top_k: int, top_ranked: Mapping[str, list[str]] | None = None, **_kwargs: Any
    ) -> dict[str, dict[str, float]]:
        """Scores by passage by query; with ``top_ranked``, of those passages only."""
        assert self._retriever is not None, "index first"
        run: dict[str, dict[str, float]] = {}
        for start in range(0, len(queries), BATCH):
            rows = queries.select(range(start, min(start + BATCH, len(queries))))
            depth = top_k if top_ranked is None else self._passages
            found = self._retriever.search([str(text) for text in rows["text"]], depth)
            for query, hits in zip(rows["id"], found, strict=True):
                wanted = None if top_ranked is None else set(top_ranked[query])
                kept = {h.passage.id: float(h.score) for h in hits if wanted is None or h.passage.id in wanted}
                run[query] = dict(list(kept.items())[:top_k])
        return run


def model_meta(name: str, revision: str) -> Any:
    """mteb's description of a model, which says no more than is known."""
    from mteb.models.model_meta import ModelMeta

    return ModelMeta.create_empty({"name": mteb_model_name(name), "revision": revision})


def _tensor(values: Any) -> Tensor:
    import torch

    return torch.as_tensor(values)
