"""Adds to a passage the terms that a trained SPLADE gives it and that it lacks, for uniCOIL and DeepImpact to weigh."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from retrieval.encoders.config import EncoderSettings
from retrieval.encoders.encoder import Encoder
from sleuth.errors import ConfigError

_WORD = re.compile(r"\w+")
_KEPT = 200_000
"""Passages whose terms are remembered: training reads the same ones again and again."""


class Expander:
    """Appends the ``terms`` heaviest words of ``encoder`` that a text does not have.

    Whole words are appended as text; with ``pieces`` all tokens are, by their ids. They take at most half of the tokens
    that a passage may have.
    """

    def __init__(self, encoder: Encoder, terms: int, pieces: bool = False) -> None:
        tokenizer: Any = getattr(encoder.model, "tokenizer", None)
        if encoder.family.kind != "sparse" or tokenizer is None:
            raise ConfigError(
                f"{encoder.source} cannot expand passages: it is an encoder of kind {encoder.family.kind}",
                "expansion.encoder names a trained encoder of kind sparse",
            )
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.terms = terms
        self.pieces = pieces
        self._identity: str | None = None
        self._names = tokenizer.convert_ids_to_tokens(range(encoder.dimension))
        self._words = [_word(token) for token in self._names]
        self._special = frozenset(tokenizer.all_special_tokens)
        self._known: dict[str, list[int]] = {}

    @property
    def fingerprint(self) -> str:
        """Digest of the encoder's passage tower and how many terms of which kind."""
        self._identity = self._identity or self.encoder.tower_fingerprint("passage")
        return f"{self._identity}/{self.terms}" + ("/pieces" if self.pieces else "")

    def __call__(self, texts: Sequence[str], tokenizer: Any, settings: EncoderSettings) -> list[str]:
        """``texts``, cut where needed to leave room for their terms, and the terms; with ``pieces`` as they are."""
        if self.pieces:
            return list(texts)
        return [
            self._joined(text, ids, tokenizer, settings) for text, ids in zip(texts, self._terms(texts), strict=True)
        ]

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text's terms; empty without ``pieces``."""
        return self._terms(texts) if self.pieces else [[] for _ in texts]

    def _terms(self, texts: Sequence[str]) -> list[list[int]]:
        missing = list(dict.fromkeys(text for text in texts if text not in self._known))
        if len(self._known) + len(missing) > _KEPT:
            self._known, missing = {}, list(dict.fromkeys(texts))
        if missing:
            weights = self.encoder.encode_texts(missing, "passage").values
            best = weights.topk(min(4 * self.terms, weights.shape[1]))
            for text, values, ids in zip(missing, best.values.tolist(), best.indices.tolist(), strict=True):
                heaviest = [i for value, i in zip(values, ids, strict=True) if value > 0]
                self._known[text] = self._lacking(text, heaviest)[: self.terms]
        return [self._known[text] for text in texts]

    def _lacking(self, text: str, ids: Sequence[int]) -> list[int]:
        if self.pieces:
            own = set(self.tokenizer(text)["input_ids"])
            return [i for i in ids if i not in own and self._names[i] not in self._special]
        has = set(_WORD.findall(text.casefold()))
        return [i for i in ids if (w := self._words[i]) and w not in self._special and w.casefold() not in has]

    def _joined(self, text: str, ids: Sequence[int], tokenizer: Any, settings: EncoderSettings) -> str:
        terms = " ".join(self._words[i] for i in ids)
        if not terms:
            return text
        words = tokenizer(terms, add_special_tokens=False, truncation=True, max_length=settings.passage_max_tokens // 2)
        added = len(words["input_ids"])
        own = len(tokenizer(settings.passage_prompt)["input_ids"])  # the prompt and what the tokenizer itself adds
        room = max(1, settings.passage_max_tokens - own - added)
        made = tokenizer(
            text, truncation=True, max_length=room, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast
        )
        if tokenizer.is_fast and len(made["input_ids"]) == room:
            end = made["offset_mapping"][-1][1]
            text = text[:end] if not text[end : end + 1].strip() else text[:end].rpartition(" ")[0]
        return f"{text} {terms}"


def check_pieces(expander: Expander, encoder: Encoder) -> None:
    """Raises ConfigError if ``encoder`` cannot read tokens of ``expander``."""
    told = "set expansion.pieces: false"
    if getattr(encoder.settings, "head", None) == "deepimpact":
        raise ConfigError("DeepImpact weighs words: pieces of words cannot be appended one by one", told)
    own: Any = getattr(encoder.model, "tokenizer", None)
    if own is None or own.get_vocab() != expander.tokenizer.get_vocab():
        raise ConfigError(f"{expander.encoder.source} and the encoder it expands for have other vocabularies", told)


def _word(token: str) -> str:
    """A token as a whole word of its own; empty where it continues one or is no word."""
    word = token.removeprefix("Ġ").removeprefix("▁")
    return "" if token.startswith("##") or not any(map(str.isalnum, word)) else word
