"""The index of sparse encoders: how it is made, opened, searched and explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.encoders.family import Encoded, PassageEncoder
from retrieval.encoders.indexes import build_encoded, open_encoded
from retrieval.encoders.pieces import IndexWriter
from retrieval.encoders.retriever import EncoderRetriever, Found
from retrieval.encoders.sparse import SPARSE
from retrieval.indexes import IndexInfo
from retrieval.sparse.build import SparseWriter
from retrieval.sparse.postings import KEPT, open_postings
from retrieval.sparse.search import PostingSearch
from sleuth.errors import ArtifactError, ConfigError, RetrieverError, did_you_mean
from sleuth.explanations import Contribution, Explanation
from sleuth.types import Passage


@dataclass(frozen=True, slots=True)
class SparseIndex:
    """Postings that are searched by the words of queries; ``name`` is the index's in error messages."""

    found_in: PostingSearch
    name: str

    def __len__(self) -> int:
        return len(self.found_in)

    def search(self, queries: Encoded, k: int) -> Found:
        """Scores and rows [queries, k]. Raises RetrieverError for another vocabulary or NaN."""
        asked = queries.values.numpy()
        words = self.found_in.postings.words
        if asked.ndim != 2 or asked.shape[1] != words:
            raise RetrieverError(
                f"query weights of shape {tuple(asked.shape)} do not fit {self.name}",
                f"its vocabulary has {words} words",
            )
        if not np.isfinite(asked).all():
            raise RetrieverError(f"a query weight for {self.name} is not finite (NaN)", "check the encoder's weights")
        try:
            return self.found_in.search(asked.astype(np.float32, copy=False), k)
        except RetrieverError as error:
            raise RetrieverError(f"{self.name}: {error.message}", error.hint) from None

    def explain(self, encoder: PassageEncoder, query: str, passages: Sequence[Passage]) -> list[Explanation]:
        """The words that each passage shares with the query: query weight times passage weight as the index has it."""
        asked = encoder.encode_texts([query], "query").values[0].numpy()
        kept = self.found_in.postings.as_kept(encoder.encode_passages(passages).values.numpy().astype(np.float32))
        tokenizer: Any = getattr(getattr(encoder, "model", encoder), "tokenizer", None)
        explained = []
        for parts in asked * kept:
            order = [int(word) for word in np.lexsort((np.arange(len(parts)), -parts)) if parts[word]]
            names = order if tokenizer is None else [_readable(tokenizer, word) for word in order]
            explained.append(
                Explanation(
                    tuple(
                        Contribution(str(name), str(name), float(parts[word]))
                        for name, word in zip(names, order, strict=True)
                    )
                )
            )
        return explained


def _readable(tokenizer: Any, word: int) -> str:
    """A token as people write it: of a byte-level vocabulary too, unless it is a part of a character."""
    text = str(tokenizer.decode([word])).strip()
    return text if text and "\ufffd" not in text else str(tokenizer.convert_ids_to_tokens(word))


class SparseIndexKind:
    """Postings in files."""

    kind = SPARSE.kind
    format = 1
    usual: Mapping[str, object] = {"weights": "uint8"}
    identity: Mapping[str, Any] = {"weights": str}

    def writer(self, folder: Path, count: int, encoder: PassageEncoder, made: Mapping[str, Any]) -> IndexWriter:
        if made["weights"] not in KEPT:
            raise ConfigError(f"weights cannot be stored as '{made['weights']}'", did_you_mean(made["weights"], KEPT))
        return SparseWriter(folder, count, encoder.dimension, made["weights"])

    def load(
        self, index: Path, manifest: Mapping[str, Any], encoder: PassageEncoder, _tuning: Mapping[str, Any]
    ) -> SparseIndex:
        postings = open_postings(index, manifest["passages"])
        if postings.words != encoder.dimension:
            raise ArtifactError(
                f"{index} has a vocabulary of {postings.words} words, the encoder {encoder.source} of "
                f"{encoder.dimension}",
                "open it with the encoder that made it",
            )
        return SparseIndex(PostingSearch(postings), str(index))


SPARSE_INDEX = SparseIndexKind()


def build_sparse(
    corpus: str | Path, out: str | Path, encoder: PassageEncoder, *, weights: str = "uint8", **how: Any
) -> IndexInfo:
    """Encode every passage of ``corpus`` and build an index of its words in the folder ``out``.

    ``how`` and errors are those of `build_index`.
    """
    return build_encoded(SPARSE_INDEX, corpus, out, encoder, {"weights": weights}, **how)


def open_sparse(index: str | Path, encoder: PassageEncoder) -> EncoderRetriever:
    """The retriever over an index made by `build_sparse`; errors are those of `open_encoded`."""
    return open_encoded(SPARSE_INDEX, index, encoder)
