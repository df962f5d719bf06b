"""One impact a term: a linear layer on each state, and the term's place in the vocabulary (uniCOIL, DeepImpact).

A module of sentence-transformers. Models with it load in plain sentence-transformers where this package is installed,
with ``trust_remote_code=True``, which classes of other packages need there.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from sentence_transformers.base.modules.module import Module
from torch import Tensor, nn

_BASE, _MODULUS = 1_000_003, 2**31 - 1


class TermImpact(Module):  # type: ignore[misc]  # sentence-transformers does not type it
    """Maps states [texts, tokens, width] and token ids to weights [texts, vocabulary], each at least 0.

    ``by_word`` False: a token weighs relu(linear(state)), and the largest of equal ones counts. True: a word weighs
    what the state of its first token says where it first occurs, shared equally among its tokens, so that a query
    that has all of them earns the whole.
    """

    config_keys = ["width", "vocabulary", "by_word"]  # noqa: RUF012 - sentence-transformers declares it so

    def __init__(self, width: int, vocabulary: int, by_word: bool = False) -> None:
        super().__init__()
        self.width, self.vocabulary, self.by_word = width, vocabulary, by_word
        self.linear = nn.Linear(width, 1)
        with torch.no_grad():  # every term weighs 1 before training: the overlap of query and passage
            self.linear.weight.zero_()
            self.linear.bias.fill_(1.0)
        self.skipped: Tensor
        """Bool [vocabulary]: special tokens, which weigh nothing."""
        self.continuing: Tensor
        """Bool [vocabulary]: tokens that continue a word."""
        self.register_buffer("skipped", torch.zeros(vocabulary, dtype=torch.bool))
        self.register_buffer("continuing", torch.zeros(vocabulary, dtype=torch.bool))

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        ids, mask = features["input_ids"], features["attention_mask"].bool()
        impacts = self.linear(features["token_embeddings"]).squeeze(-1).relu()
        kept = mask & ~self.skipped[ids]
        impacts = self._of_words(impacts, ids, kept) if self.by_word else impacts * kept
        empty = impacts.new_zeros(len(ids), self.vocabulary)
        features["sentence_embedding"] = empty.scatter_reduce(1, ids, impacts, "amax")
        return features

    def _of_words(self, impacts: Tensor, ids: Tensor, kept: Tensor) -> Tensor:
        """What each token has of the impact of its word [texts, tokens]."""
        starts = kept & ~self.continuing[ids]
        word = starts.long().cumsum(1).sub(1).clamp(min=0)  # [texts, tokens]: the number of a token's word
        count = torch.zeros_like(ids).scatter_add(1, word, kept.long())
        place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        first = torch.full_like(ids, ids.shape[1] - 1).scatter_reduce(1, word, place.where(kept, place[:, -1:]), "amin")
        offset = place - first.gather(1, word)
        powers = torch.tensor([pow(_BASE, i, _MODULUS) for i in range(ids.shape[1])], device=ids.device)
        spelled = (ids + 1) * powers[offset.clamp(min=0)]
        name = torch.zeros_like(ids).scatter_add(1, word, spelled * kept)
        seen = ((name[:, :, None] == name[:, None, :]).tril(-1)).any(2)  # the same word stands before
        value = impacts.gather(1, first) / count.clamp(min=1) * ~seen
        return value.gather(1, word) * kept

    def get_embedding_dimension(self) -> int:
        return self.vocabulary

    def save(self, output_path: str, *_: Any, safe_serialization: bool = True, **__: Any) -> None:
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, **kwargs: Any) -> Self:
        known = ("subfolder", "token", "cache_folder", "revision", "local_files_only")
        where = {name: kwargs[name] for name in known if name in kwargs}
        made = cls(**cls.load_config(model_name_or_path=model_name_or_path, **where))
        loaded: Self = cls.load_torch_weights(model_name_or_path=model_name_or_path, model=made, **where)
        return loaded
