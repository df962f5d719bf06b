"""Families of encoders on one tiny masked language model: what the loop must take without knowing any of them.

Sparse ones are not part of Sleuth yet; their models, heads and terms are sentence-transformers'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.losses import FlopsLoss
from sentence_transformers.sparse_encoder.modules import SpladePooling
from torch import Tensor, nn
from transformers import AutoConfig, BertForMaskedLM

from retrieval.encoders.assembly import limit_tokens
from retrieval.encoders.config import DenseEncoderSettings, EncoderSettings, ScratchSettings, preset
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.family import Encoded, single
from retrieval.encoders.loading import new_encoder
from retrieval.encoders.pieces import encode_pieces, nearest, pieces_of
from retrieval.encoders.scratch import make_backbone
from retrieval.passages import passage_text
from retrieval.training.objective import Scored
from retrieval.training.rows import TrainingRow, passages_of
from sleuth.types import Hit, Passage

WORDS = ["amber", "birch", "coral", "delta", "ember", "fjord", "grove", "heath", "islet", "jetty", "knoll", "larch"]


def rows() -> list[TrainingRow]:
    """Which passage is meant is told by one word; texts are of several lengths, and no passage stands twice."""
    more = ["", " It is old and far away, on a hill.", " Nobody knows why."]
    golds = [Passage(f"p{i}", word.capitalize(), f"This is about {word}.{more[i % 3]}") for i, word in enumerate(WORDS)]
    others = [Passage(f"n{i}", "Other", f"This, not, is about {w} and more.{more[i % 2]}") for i, w in enumerate(WORDS)]
    asked = [f"tell of {word}" + " please" * (i % 4) for i, word in enumerate(WORDS)]
    return [TrainingRow(f"q{i}", asked[i], (golds[i],), (others[i],)) for i in range(len(WORDS))]


def masked_lm(folder: Path, dropout: float = 0.0) -> Path:
    texts = [row.query for row in rows()] + [passage_text(p) for p in passages_of(rows())]
    shape = ScratchSettings(vocabulary=120, hidden_size=32, layers=2, heads=2, max_positions=64, dropout=dropout)
    make_backbone(folder, texts, shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForMaskedLM(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Sparse:
    """A weight a word of the vocabulary (Formal et al. 2021)."""

    kind: str = "sparse"

    def read(self, outputs: Mapping[str, Tensor], settings: EncoderSettings) -> Encoded:
        return Encoded(single(outputs["sentence_embedding"]))

    def scores(self, queries: Encoded, passages: Encoded) -> Tensor:
        return queries.values @ passages.values.T


def settings_of(folder: Path) -> DenseEncoderSettings:
    limits: dict[str, Any] = {"query_max_tokens": 16, "passage_max_tokens": 24, "query_prompt": "ask: "}
    return DenseEncoderSettings(backbone=str(folder), similarity="cosine", **limits)


def dense(folder: Path) -> Encoder:
    return new_encoder(settings_of(folder))


def multivector(folder: Path) -> Encoder:
    limits: dict[str, Any] = {"query_max_tokens": 16, "passage_max_tokens": 24, "query_prompt": "ask: "}
    return new_encoder(preset("colbert", str(folder), dimensions=16, expand_to=10, **limits))


def sparse(folder: Path) -> Encoder:
    first = Transformer(str(folder), transformer_task="fill-mask")
    limit_tokens(first, settings_of(folder))
    return Encoder(SparseEncoder(modules=[first, SpladePooling("max")]), settings_of(folder), Sparse())


FAMILIES: dict[str, Callable[[Path], Encoder]] = {"dense": dense, "multivector": multivector, "sparse": sparse}


def flops(scored: Scored) -> dict[str, Tensor]:
    """SPLADE's regularisers, one for queries and one for passages (Paria et al. 2020)."""

    def of(encoded: Encoded) -> Tensor:
        kept = encoded.values if encoded.mask is None else (encoded.values * encoded.mask[..., None]).sum(1)
        found: Tensor = FlopsLoss(None).compute_loss_from_embeddings(kept)
        return found

    return {"flops_query": 0.05 * of(scored.queries), "flops_passage": 0.03 * of(scored.passages)}


def margin_mse(scored: Scored) -> dict[str, Tensor]:
    """Margins to the positive as a teacher has them, who scores by words in common (Hofstätter et al. 2020)."""
    texts = [set(passage_text(p).lower().split()) for p in scored.batch.passages]
    wanted = [[len(words & set(query.split())) / 4 for words in texts] for query in scored.batch.queries]
    teacher = torch.tensor(wanted)
    own = scored.batch.targets.positive[:, None]
    margins = [scores.gather(1, own) - scores for scores in (scored.scores, teacher)]
    return {"margin_mse": nn.functional.mse_loss(*margins)}


class Exact:
    """A retriever over passages that have no index."""

    fingerprint = "exact"

    def __init__(self, encoder: Encoder, passages: Sequence[Passage], size: int = 5) -> None:
        self.encoder, self.passages = encoder, passages
        self.pieces = list(encode_pieces(passages, encoder, pieces_of(len(passages), size), 4))

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        asked = self.encoder.encode_texts(queries, "query")
        found = zip(*(t.tolist() for t in nearest(self.encoder, asked, self.pieces, k)), strict=True)
        hits = [enumerate(zip(scores, places, strict=True), 1) for scores, places in found]
        return [[Hit(self.passages[place], score, rank) for rank, (score, place) in some] for some in hits]
