"""SPLADE's regulariser: the expected cost of a search, which makes weights sparse (Paria et al. 2020)."""

from __future__ import annotations

from sentence_transformers.sparse_encoder.losses import FlopsLoss
from torch import Tensor

from retrieval.encoders.encoder import Encoder
from retrieval.encoders.family import Encoded
from retrieval.encoders.sparse_config import SparseEncoderSettings
from retrieval.training.config import RegulariserSettings, TrainingSettings
from retrieval.training.objective import Scored, Terms
from sleuth.errors import ConfigError


def flops_terms(settings: TrainingSettings, encoder: Encoder) -> Terms | None:
    """The regulariser of queries and of passages; ``settings.steps`` are those of the whole run.

    Without settings SPLADE gets the usual one, and others none. Raises ConfigError for an encoder that is not sparse.
    """
    own, chosen = encoder.settings, settings.regulariser
    if not isinstance(own, SparseEncoderSettings):
        if chosen is None:
            return None
        raise ConfigError(
            f"training.regulariser is for sparse encoders, and this one is {own.kind}", "leave regulariser out"
        )
    if chosen is None and own.head != "splade":
        return None
    weights, steps = chosen or RegulariserSettings(), settings.steps or 1

    def terms(scored: Scored) -> dict[str, Tensor]:
        ramp = quadratic(scored.step, steps, weights.ramp)
        found = {"flops_passage": ramp * weights.passage * flops(scored.passages)}
        if own.queries == "encoded":
            found["flops_query"] = ramp * weights.query * flops(scored.queries)
        return {name: term for name, term in found.items() if term.requires_grad}

    return terms


def flops(encoded: Encoded) -> Tensor:
    """The sum over words of the squared mean weight of [texts, words]."""
    found: Tensor = FlopsLoss(None).compute_loss_from_embeddings(encoded.values)
    return found


def quadratic(step: int, steps: int, share: float) -> float:
    """The part of the weight that counts at ``step``, counted from 0: it rises to 1 over ``share`` of ``steps``."""
    rising = max(1, int(steps * share))
    return min(1.0, step / rising) ** 2
