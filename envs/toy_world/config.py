"""Settings of the made-up world."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from sleuth.settings import Settings

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


class KindMix(Settings):
    """Weights of the question kinds; they need not sum to 1."""

    one_hop: float = Field(3.0, ge=0)
    two_hop: float = Field(2.0, ge=0)
    three_hop: float = Field(1.0, ge=0)
    comparison: float = Field(0.75, ge=0)
    yes_no: float = Field(0.75, ge=0)

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if not sum(self.model_dump().values()) > 0:
            raise ValueError("at least one kind of question needs a weight above 0")
        return self


class WorldSettings(Settings):
    """Sizes of the world and of its question sets; one passage per entity."""

    seed: int = 0
    films: int = Field(3000, ge=1)
    people: int = Field(3000, ge=1)
    companies: int = Field(1500, ge=1)
    cities: int = Field(2000, ge=1)
    countries: int = Field(1000, ge=1)
    syllables: int = Field(3, ge=2, le=8)
    """Syllables per name; there are 140 ** syllables possible names."""
    first_year: int = Field(1950, ge=1000, le=9999)
    last_year: int = Field(1999, ge=1000, le=9999)
    train: int = Field(6400, ge=0)
    """Number of questions in the training split; ``dev`` and ``test`` likewise."""
    dev: int = Field(300, ge=0)
    test: int = Field(300, ge=0)
    kinds: KindMix = KindMix()
    paraphrase: float = Field(0.0, ge=0, le=1)
    """Fraction of questions that name entities and relations with words that occur in no passage."""
    dev_share: float = Field(0.15, gt=0, lt=1)
    """Fraction of each type's entities in the dev split; ``test_share`` likewise, the rest is for training."""
    test_share: float = Field(0.15, gt=0, lt=1)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.last_year <= self.first_year:
            raise ValueError("last_year must be after first_year")
        if self.dev_share + self.test_share >= 1:
            raise ValueError("dev_share and test_share leave nothing to train on")
        return self
