"""Settings of multi-vector encoders: a vector a token, compared by late interaction. No torch here."""

from __future__ import annotations

import string
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from retrieval.encoders.config import Dimensions, EncoderChoice, EncoderSettings

NotNegative = Annotated[int, Field(ge=0)]


class MultiVectorEncoderSettings(EncoderSettings):
    """How text becomes a vector a token (ColBERT, Khattab and Zaharia 2020)."""

    kind: Literal["multivector"] = "multivector"
    dimensions: Dimensions = 128
    """Of a token's vector: a new encoder's linear projection gives so many; of a loaded one's the first are kept."""
    normalise: bool = True
    """L2-normalise every token's vector, so that products are cosines."""
    expand_to: NotNegative = 32
    """Queries of fewer tokens are filled up with mask tokens, whose vectors count too, as far as ``query_max_tokens``
    lets them; 0: they are not."""
    attend_to_expansion: bool = False
    """Whether the query's own tokens attend to those that fill it up."""
    expansion_token: str | None = None
    """None: the tokenizer's mask token, or its EOS where it has none."""
    skipped_tokens: list[str] = Field(default_factory=lambda: list(string.punctuation))
    """Tokens of passages that get no vector; those that the tokenizer does not know are none."""

    @property
    def unit_length(self) -> bool:
        return self.normalise

    @property
    def width(self) -> int | None:
        return self.dimensions

    @property
    def filled_to(self) -> int:
        """Tokens of a query at least."""
        return min(self.expand_to, self.query_max_tokens)

    @property
    def comparison(self) -> str:
        return "maxsim"

    @property
    def decisive(self) -> list[object]:
        expansion = [self.filled_to, self.attend_to_expansion, self.expansion_token]
        return [self.dimensions, self.normalise, *expansion, sorted(self.skipped_tokens)]


class MultiVectorChoice(EncoderChoice):
    """A vector a token."""

    ASSEMBLY: ClassVar[str] = "retrieval.encoders.multivector:MULTIVECTOR_ASSEMBLY"
    SETTINGS: ClassVar[type[EncoderSettings]] = MultiVectorEncoderSettings

    kind: Literal["multivector"] = "multivector"
    dimensions: Dimensions | None = None
    normalise: bool | None = None
    expand_to: NotNegative | None = None
    attend_to_expansion: bool | None = None
    expansion_token: str | None = None
    skipped_tokens: list[str] | None = None
