"""The sparse half of an answer: next-token weights, kept for the tokens of the text's own words (section 3)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # type: ignore[import-untyped]
from torch import Tensor

from retrieval.encoders.family import Encoded

SCALE = 100
"""Weights are rounded to hundredths, as whole numbers."""
_WORD = re.compile(r"\w+")
_IF_NONE = 10


@dataclass(frozen=True, slots=True)
class Terms:
    """``ids`` [texts, n]: tokens of the vocabulary; ``weights`` [texts, n]: whole numbers, 0 where there are fewer."""

    ids: Tensor
    weights: Tensor

    def as_words(self, vocabulary: int) -> Tensor:
        """[texts, vocabulary], one weight a token."""
        return torch.zeros(len(self.ids), vocabulary).scatter_add_(1, self.ids, self.weights)


def pack(vectors: Tensor, terms: Terms) -> Encoded:
    """Both halves as one row a text, [texts, d + 2n]: vector, token ids, weights. Ids are exact in float32."""
    return Encoded(torch.cat([vectors, terms.ids.float(), terms.weights], dim=1))


def unpack(encoded: Encoded, dimension: int) -> tuple[Tensor, Terms]:
    """Vectors [texts, ``dimension``] and terms of `pack`."""
    count = (encoded.values.shape[1] - dimension) // 2
    vectors, ids, weights = encoded.values.split([dimension, count, count], dim=1)
    return vectors, Terms(ids.long(), weights)


def terms_of(logits: Tensor, texts: Sequence[str], tokenizer: Any, count: int) -> Terms:
    """The ``count`` heaviest tokens of each text by ``logits`` [texts, vocabulary] of the next token.

    A text without words, or of stop words alone, keeps the 10 heaviest tokens of all.
    """
    weights = torch.log1p(logits.float().relu())
    ids, kept = torch.zeros(len(texts), count, dtype=torch.long), torch.zeros(len(texts), count)
    for row, text in enumerate(texts):
        own = sorted(tokens_of(text, tokenizer))
        candidates = torch.tensor(own) if own else torch.arange(weights.shape[1])
        found = weights[row, candidates].topk(min(count, len(own) or _IF_NONE))
        size = len(found.values)
        ids[row, :size], kept[row, :size] = candidates[found.indices], (found.values * SCALE).round()
    return Terms(ids, kept)


def tokens_of(text: str, tokenizer: Any) -> set[int]:
    """Tokens of the words of ``text`` in lower case, each word by itself, without English stop words."""
    words = sorted({word for word in _WORD.findall(text.lower()) if word not in ENGLISH_STOP_WORDS})
    if not words:
        return set()
    made = tokenizer(words, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False)
    return {token for ids in made["input_ids"] for token in ids}
