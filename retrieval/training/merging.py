"""Merges the weights of encoders of one shape: their mean, or along the arc between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from retrieval.encoders.encoder import Encoder
from sleuth.errors import ArtifactError

Weights = Mapping[str, Tensor]


def check_tokenizers(encoders: Mapping[str, Encoder]) -> None:
    """Raise ArtifactError where a token of one encoder is another word in the next, by the names of ``encoders``.

    Their word vectors may have one shape all the same, and a mean of them would be of nothing.
    """
    (first, known), *others = ((name, _vocabularies(encoder)) for name, encoder in encoders.items())
    other = next((name for name, vocabularies in others if vocabularies != known), None)
    if other is not None:
        raise ArtifactError(
            f"{first} and {other} have different tokenizers, so their word vectors cannot be merged",
            "merge stages that started from the same encoder",
        )


def _vocabularies(encoder: Encoder) -> list[dict[str, int]]:
    """Of every module that reads text."""
    tokenizers = (getattr(module, "tokenizer", None) for module in encoder.model.modules())
    return [tokenizer.get_vocab() for tokenizer in tokenizers if tokenizer is not None]


def merge_weights(parts: Sequence[Weights], shares: Sequence[float], method: str) -> dict[str, Tensor]:
    """The tensors of all ``parts`` merged by name, in their own precision. ``shares`` need not sum to 1; some may be 0.

    What is no floating-point number (positions) is that of the first. Raises ArtifactError where shapes differ.
    """
    first = parts[0]
    for other in parts[1:]:
        names = first.keys() ^ other.keys() or {n for n in first if first[n].shape != other[n].shape}
        if names:
            raise ArtifactError(
                f"encoders of different shapes cannot be merged: they differ in {min(names)}",
                "merge stages that started from the same encoder",
            )
    together = {"linear": _linear, "slerp": _slerps}[method]
    counted, shares = zip(*((part, share) for part, share in zip(parts, shares, strict=True) if share), strict=True)
    merged = {}
    for name, tensor in first.items():
        if tensor.is_floating_point():
            merged[name] = together([part[name].double() for part in counted], shares).to(tensor.dtype)
        else:
            merged[name] = tensor.clone()
    return merged


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The point at ``t`` of the arc from ``a`` to ``b`` around the origin; of parallel ones, on the line between."""
    lengths = float(a.norm() * b.norm())
    cosine = max(-1.0, min(1.0, float((a * b).sum()) / lengths)) if lengths else 1.0
    angle = math.acos(cosine)
    if math.sin(angle) < 1e-6:
        return torch.lerp(a, b, t)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def _linear(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    whole = sum(shares)
    return torch.stack([tensor * (share / whole) for tensor, share in zip(tensors, shares, strict=True)]).sum(0)


def _slerps(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """One after the other, each with its share of what is merged so far."""
    merged, so_far = tensors[0], shares[0]
    for tensor, share in zip(tensors[1:], shares[1:], strict=True):
        so_far += share
        merged = slerp(merged, tensor, share / so_far)
    return merged
