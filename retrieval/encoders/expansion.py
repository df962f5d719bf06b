"""Adds to a passage the terms that a trained SPLADE gives it and that it lacks, for uniCOIL and DeepImpact to weigh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retrieval.encoders.config import EncoderSettings
from retrieval.encoders.encoder import Encoder
from sleuth.errors import ConfigError

_KEPT = 200_000
"""Passages whose terms are remembered: training reads the same ones again and again."""


class Expander:
    """Appends the ``terms`` heaviest words of ``encoder`` that a text does not have. Whole words only."""

    def __init__(self, encoder: Encoder, terms: int) -> None:
        tokenizer: Any = getattr(encoder.model, "tokenizer", None)
        if encoder.family.kind != "sparse" or tokenizer is None:
            raise ConfigError(
                f"{encoder.source} cannot expand passages: it is an encoder of kind {encoder.family.kind}",
                "expansion.encoder names a trained encoder of kind sparse",
            )
        self.encoder = encoder
        self.terms = terms
        self._identity: str | None = None
        self._words = [_word(token) for token in tokenizer.convert_ids_to_tokens(range(encoder.dimension))]
        self._special = frozenset(tokenizer.all_special_tokens)
        self._known: dict[str, str] = {}

    @property
    def fingerprint(self) -> str:
        """Digest of the encoder's passage tower and the number of terms."""
        self._identity = self._identity or self.encoder.tower_fingerprint("passage")
        return f"{self._identity}/{self.terms}"

    def __call__(self, texts: Sequence[str], tokenizer: Any, settings: EncoderSettings) -> list[str]:
        """``texts``, cut where needed to leave room for their terms, and the terms."""
        missing = list(dict.fromkeys(text for text in texts if text not in self._known))
        if len(self._known) + len(missing) > _KEPT:
            self._known, missing = {}, list(dict.fromkeys(texts))
        if missing:
            weights = self.encoder.encode_texts(missing, "passage").values
            best = weights.topk(min(4 * self.terms, weights.shape[1]))
            for text, values, ids in zip(missing, best.values.tolist(), best.indices.tolist(), strict=True):
                self._known[text] = self._terms_of(text, [i for value, i in zip(values, ids, strict=True) if value > 0])
        return [self._joined(text, self._known[text], tokenizer, settings) for text in texts]

    def _terms_of(self, text: str, ids: Sequence[int]) -> str:
        has = set(text.lower().split())
        found = (word for i in ids if (word := self._words[i]) and word not in self._special and word not in has)
        return " ".join([word for word, _ in zip(found, range(self.terms), strict=False)])

    def _joined(self, text: str, terms: str, tokenizer: Any, settings: EncoderSettings) -> str:
        if not terms:
            return text
        added = len(tokenizer(terms, add_special_tokens=False)["input_ids"])
        own = len(tokenizer(settings.passage_prompt)["input_ids"])  # the prompt and what the tokenizer itself adds
        room = max(1, settings.passage_max_tokens - own - added)
        made = tokenizer(
            text, truncation=True, max_length=room, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast
        )
        if tokenizer.is_fast and len(made["input_ids"]) == room:
            end = made["offset_mapping"][-1][1]
            text = text[:end] if not text[end : end + 1].strip() else text[:end].rpartition(" ")[0]
        return f"{text} {terms}"


def _word(token: str) -> str:
    """A token as a whole word of its own; empty where it continues one or is no word."""
    word = token.removeprefix("Ġ").removeprefix("▁")
    return "" if token.startswith("##") or not any(map(str.isalnum, word)) else word
