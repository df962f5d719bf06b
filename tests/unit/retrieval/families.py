"""Families of encoders on one tiny masked language model: what the loop must take without knowing any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.sparse_encoder.losses import FlopsLoss
from torch import Tensor, nn

from retrieval.encoders.config import DenseEncoderSettings, ScratchSettings, preset
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.family import Encoded
from retrieval.encoders.loading import new_encoder
from retrieval.encoders.pieces import encode_pieces, nearest, pieces_of
from retrieval.encoders.scratch import make_backbone
from retrieval.encoders.sparse_config import SparseEncoderSettings
from retrieval.passages import content_key, passage_text
from retrieval.training.objective import Scored
from retrieval.training.row import TrainingRow, passages_of
from sleuth.types import Hit, Passage

WORDS = ["amber", "birch", "coral", "delta", "ember", "fjord", "grove", "heath", "islet", "jetty", "knoll", "larch"]


def rows() -> list[TrainingRow]:
    """Which passage is meant is told by one word; texts are of several lengths, and no passage stands twice."""
    more = ["", " It is old and far away, on a hill.", " Nobody knows why."]
    golds = [Passage(f"p{i}", word.capitalize(), f"This is about {word}.{more[i % 3]}") for i, word in enumerate(WORDS)]
    others = [Passage(f"n{i}", "Other", f"This, not, is about {w} and more.{more[i % 2]}") for i, w in enumerate(WORDS)]
    asked = [f"tell of {word}" + " please" * (i % 4) for i, word in enumerate(WORDS)]
    return [TrainingRow(f"q{i}", asked[i], (golds[i],), (others[i],)) for i in range(len(WORDS))]


def taught_rows() -> list[TrainingRow]:
    """The same, of two sets, with scores of a teacher, and with instructions for some."""
    told = ["", "Find what it is", "Find who knows"]
    return [
        replace(
            row,
            instruction=told[i % 3],
            source="ab"[i % 2],
            scores={content_key(p): (3.0 if p in row.positives else 0.5) + i / 10 for p in passages_of([row])},
        )
        for i, row in enumerate(rows())
    ]


EVERYTHING: dict[str, Any] = {
    "directions": ["query_to_passage", "passage_to_query", "query_to_query", "passage_to_passage"],
    "hardness": {"mode": "all_negatives", "strength": 2.0},
    "distillation": {"kl": 0.5, "margin_mse": 0.1, "contrastive": 0.7},
}
"""All that can be added to InfoNCE."""


def instructable(folder: Path) -> Encoder:
    """A dense encoder whose query prompt has a place for an instruction."""
    return new_encoder(settings_of(folder).model_copy(update={"query_prompt": "Instruct: Find it\nQuery:"}))


def masked_lm(folder: Path, dropout: float = 0.0) -> Path:
    texts = [row.query for row in rows()] + [passage_text(p) for p in passages_of(rows())]
    size = {"vocabulary": 120, "hidden_size": 32, "layers": 2, "heads": 2, "max_positions": 64}
    make_backbone(folder, texts, ScratchSettings.model_validate(size | {"dropout": dropout, "masked_lm": True}))
    return folder


LIMITS: dict[str, Any] = {"query_max_tokens": 16, "passage_max_tokens": 24, "query_prompt": "ask: "}


def settings_of(folder: Path) -> DenseEncoderSettings:
    return DenseEncoderSettings(backbone=str(folder), similarity="cosine", **LIMITS)


def dense(folder: Path) -> Encoder:
    return new_encoder(settings_of(folder))


def multivector(folder: Path) -> Encoder:
    limits: dict[str, Any] = {"query_max_tokens": 16, "passage_max_tokens": 24, "query_prompt": "ask: "}
    return new_encoder(preset("colbert", str(folder), dimensions=16, expand_to=10, **limits))


def sparse(folder: Path) -> Encoder:
    return new_encoder(SparseEncoderSettings(backbone=str(folder), **LIMITS))


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
