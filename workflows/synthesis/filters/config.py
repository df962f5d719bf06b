"""Settings of the filters. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, StringConstraints, model_validator

from retrieval.config import AnyRetriever
from sleuth.kinds import KindSettings
from sleuth.plugins import load_object, make_object
from sleuth.settings import Count, Rate

if TYPE_CHECKING:
    from workflows.synthesis.filters.base import Bench, Filter

NotNegative = Annotated[int, Field(ge=0)]


class FilterSettings(KindSettings):
    """A filter. Filters are asked in the order of the config, each about what the ones before have kept."""

    NOUN: ClassVar[str] = "filter"
    KINDS: ClassVar[Mapping[str, str]] = {
        "length": "workflows.synthesis.filters.config:LengthSettings",
        "language": "workflows.synthesis.filters.config:LanguageSettings",
        "leakage": "workflows.synthesis.filters.config:LeakageSettings",
        "near_duplicates": "workflows.synthesis.filters.config:NearDuplicatesSettings",
        "round_trip": "workflows.synthesis.filters.config:RoundTripSettings",
        "answerable": "workflows.synthesis.filters.config:AnswerableSettings",
    }
    FILTER: ClassVar[str]
    """Dotted path of what makes the filter of these settings."""
    CHECK: ClassVar[str] = ""
    """Dotted path of a function of these settings for `check`; empty: nothing can be wrong."""

    @classmethod
    def spelled_out(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value

    @property
    def weighs(self) -> bool:
        """Whether the writer must be one that can say how likely a text is."""
        return False

    def check(self) -> None:
        """Raise ConfigError for what can be known before a model is loaded."""
        if self.CHECK:
            load_object(self.CHECK)(self)

    def open(self, bench: Bench) -> Filter:
        made: Filter = make_object(self.FILTER, "filter", self, bench)
        return made


AnyFilter = SerializeAsAny[FilterSettings]


class LengthSettings(FilterSettings):
    """Words of queries and of positives. Of scripts without spaces three letters count as a word.

    ``min_passage_words`` is not asked of the labels that ``e5`` writes in the shape ``long_short``.
    """

    FILTER: ClassVar[str] = "workflows.synthesis.filters.texts:Length"

    kind: Literal["length"] = "length"
    min_words: NotNegative = 3
    max_words: Count = 2500
    min_passage_words: NotNegative = 5
    max_passage_words: Count = 5000

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max_words < self.min_words or self.max_passage_words < self.min_passage_words:
            raise ValueError("a maximum is below its minimum")
        return self


class LanguageSettings(FilterSettings):
    """The language of the query, as py3langid sees it; the row is dropped where it is sure of another one."""

    FILTER: ClassVar[str] = "workflows.synthesis.filters.texts:Language"
    CHECK: ClassVar[str] = "workflows.synthesis.filters.texts:check_languages"

    kind: Literal["language"] = "language"
    languages: Annotated[list[Annotated[str, StringConstraints(to_lower=True)]], Field(min_length=1)] = ["en"]  # noqa: RUF012
    """Two-letter codes of what may be."""
    sure: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Probability from which another language counts; short queries are seldom certain."""


class LeakageSettings(FilterSettings):
    """What shares ``words`` words in a row with a question of a dev or test set, or holds a shorter one of them.

    That of the query, of passages that were written, and of the instruction; a question of fewer than four words counts
    where it is the query. ``against``: files of questions, folders of BEIR or BRIGHT, or folders below which any are.
    ``present``: also those beside the corpus, and below the folder that the environment variable SLEUTH_DATA names.
    """

    FILTER: ClassVar[str] = "workflows.synthesis.filters.leakage:Leakage"

    kind: Literal["leakage"] = "leakage"
    words: Annotated[int, Field(ge=3)] = 8
    against: list[Path] = Field(default_factory=list)
    present: bool = True


class NearDuplicatesSettings(FilterSettings):
    """Queries that resemble one kept before: Jaccard of their word n-grams, found by MinHash (Broder 1997).

    ``per_passage`` bounds the rows kept of a positive.
    """

    FILTER: ClassVar[str] = "workflows.synthesis.filters.duplicates:NearDuplicates"

    kind: Literal["near_duplicates"] = "near_duplicates"
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.7
    shingle: Count = 2
    permutations: Annotated[int, Field(ge=16)] = 128
    per_passage: Count | None = None


class RoundTripSettings(FilterSettings):
    """A positive must be among the first ``k`` that ``retriever`` finds for the query (Dai et al. 2023).

    Only for positives that are in its corpus: passages that were written are in none, and rows with no others pass.
    """

    FILTER: ClassVar[str] = "workflows.synthesis.filters.round_trip:RoundTrip"

    kind: Literal["round_trip"] = "round_trip"
    retriever: AnyRetriever
    k: Count = 10


class AnswerableSettings(FilterSettings):
    """The writer says whether a positive answers the query.

    ``by: word`` asks for yes or no. ``by: odds`` needs a writer that weighs texts: yes must be ``odds`` times as likely
    as no.
    """

    FILTER: ClassVar[str] = "workflows.synthesis.filters.answerable:Answerable"
    CHECK: ClassVar[str] = "workflows.synthesis.filters.answerable:template_of"

    kind: Literal["answerable"] = "answerable"
    template: str = "answerable"
    by: Literal["word", "odds"] = "word"
    odds: Rate = 1.0

    @property
    def weighs(self) -> bool:
        return self.by == "odds"
