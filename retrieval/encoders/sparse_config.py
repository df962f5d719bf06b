"""Settings of learned sparse encoders: a weight for each word of a vocabulary. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from retrieval.encoders.config import EncoderChoice, EncoderSettings, ExpansionSettings
from sleuth.settings import Count

Head = Literal["splade", "unicoil", "deepimpact", "other"]
"""splade: maximum over positions of log(1 + relu(masked-LM logit)) (Formal et al. 2021); unicoil: one impact a token
(Lin and Ma 2021); deepimpact: one a word, from its first occurrence (Mallia et al. 2021); other: what only
sentence-transformers knows."""
Queries = Literal["encoded", "learned", "idf", "tokens"]
"""encoded: by the model. The others need no model at search time: tokens weigh 1 (tokens), their inverse document
frequency (idf), or what training makes of it (learned)."""
SpecialTokens = Literal["masked", "pooled"]


class SparseEncoderSettings(EncoderSettings):
    """How text becomes a weight for each word of the backbone's vocabulary."""

    kind: Literal["sparse"] = "sparse"
    head: Head = "splade"
    queries: Queries = "encoded"
    idf_corpus: str | None = None
    """Passages that inverse document frequencies are counted in; learned weights start from them, else from 1."""
    special_tokens: SpecialTokens = "masked"
    """masked: what the model says at [CLS], [SEP] or BOS counts for nothing."""
    max_terms: Count | None = None
    """Keep the largest so many weights of a text; None: all."""
    expansion: ExpansionSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _static_queries_have_a_tower(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("queries", "encoded") != "encoded":
            return {**values, "towers": "separate"}
        return values

    @model_validator(mode="after")
    def _idf_is_counted_somewhere(self) -> SparseEncoderSettings:
        if self.queries == "idf" and self.idf_corpus is None:
            raise ValueError("queries: idf needs idf_corpus, the passages to count words in")
        return self

    @property
    def expands(self) -> ExpansionSettings | None:
        return self.expansion

    @property
    def decisive(self) -> list[object]:
        return [self.head, self.special_tokens, self.max_terms]


class SparseChoice(EncoderChoice):
    """A weight a word of the vocabulary."""

    ASSEMBLY: ClassVar[str] = "retrieval.encoders.sparse:SPARSE_ASSEMBLY"
    SETTINGS: ClassVar[type[EncoderSettings]] = SparseEncoderSettings

    kind: Literal["sparse"] = "sparse"
    head: Head | None = None
    queries: Queries | None = None
    idf_corpus: str | None = Field(default=None)
    special_tokens: SpecialTokens | None = None
    max_terms: Count | None = None
    expansion: ExpansionSettings | None = None

    @property
    def needs_masked_lm(self) -> bool:
        return self.head in (None, "splade")

    @property
    def chosen(self) -> dict[str, Any]:
        expansion = {} if self.expansion is None else {"expansion": self.expansion}
        return {**super().chosen, **expansion}
