"""Settings of the recipes by which rows are written. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeVar, get_args

from pydantic import AfterValidator, Field, SerializeAsAny

from retrieval.config import AnyRetriever
from sleuth.kinds import KindSettings
from sleuth.plugins import make_object
from sleuth.settings import Count

if TYPE_CHECKING:
    from workflows.synthesis.writing import Recipe

NotNegative = Annotated[int, Field(ge=0)]
Shape = Literal["short_long", "long_short", "short_short", "long_long"]


T = TypeVar("T")


def _different(values: list[T]) -> list[T]:
    if len(set(values)) < len(values):
        raise ValueError("each can be named once; it would only be written twice")
    return values


Each = Annotated[list[T], Field(min_length=1), AfterValidator(_different)]


class RecipeSettings(KindSettings):
    """A recipe. ``template`` is the name of a prompt template that is shipped, or a YAML file of one's own.

    ``choices`` replace or add to what the template draws from, one of each for every unit.
    """

    NOUN: ClassVar[str] = "recipe"
    KINDS: ClassVar[Mapping[str, str]] = {
        "queries": "workflows.synthesis.recipes.config:QueriesSettings",
        "e5": "workflows.synthesis.recipes.config:E5Settings",
        "gecko": "workflows.synthesis.recipes.config:GeckoSettings",
        "reasonir": "workflows.synthesis.recipes.config:ReasonIRSettings",
        "qwen3": "workflows.synthesis.recipes.config:Qwen3Settings",
        "rewrites": "workflows.synthesis.recipes.config:RewritesSettings",
    }
    RECIPE: ClassVar[str]
    """Dotted path of what makes the recipe of these settings."""
    OFFERED: ClassVar[Sequence[str]] = ()
    """Choices of which the recipe makes something itself, beside the one that is drawn."""

    template: str = ""
    choices: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(default_factory=dict)

    @property
    def template_name(self) -> str:
        return self.template or self.kind

    @property
    def needs(self) -> Literal["passages", "rows", "nothing"]:
        return "passages"

    @property
    def weighs(self) -> bool:
        """Whether the writer must be one that can say how likely a text is."""
        return False

    def open(self) -> Recipe:
        made: Recipe = make_object(self.RECIPE, "recipe", self)
        return made


AnyRecipe = SerializeAsAny[RecipeSettings]


class QueriesSettings(RecipeSettings):
    """A question a passage answers, after two examples (InPars, Bonifacio et al. 2022; Promptagator, Dai et al. 2023).

    ``template: queries`` shows two questions about encyclopedia passages.
    """

    RECIPE: ClassVar[str] = "workflows.synthesis.recipes.queries:Queries"

    kind: Literal["queries"] = "queries"
    per_passage: Count = 1


class E5Settings(RecipeSettings):
    """Tasks are thought up, then a query, a positive and a hard negative of each (Wang et al. 2024).

    ``shapes`` are of query and passage; each unit is of one, and brainstorms ``tasks`` of which each gives
    ``per_task`` rows. Language and choices are drawn for each row.
    """

    RECIPE: ClassVar[str] = "workflows.synthesis.recipes.e5:E5"

    kind: Literal["e5"] = "e5"
    shapes: Annotated[list[Shape], Field(min_length=1)] = list(get_args(Shape))  # noqa: RUF012
    tasks: Count = 10
    per_task: Count = 1
    languages: Annotated[list[str], Field(min_length=1)] = ["English"]  # noqa: RUF012

    @property
    def needs(self) -> Literal["passages", "rows", "nothing"]:
        return "nothing"


class GeckoSettings(RecipeSettings):
    """A task and a query from a passage; its neighbours are ranked by the same model (Lee et al. 2024).

    The rankings by query likelihood and by relevance are fused by reciprocal rank. The first is the positive, which
    may be another than the seed; the hard negative is at ``negative_rank`` of the fused order, the last by default, or
    the nearest before it that is neither the seed nor a copy of the positive.
    """

    RECIPE: ClassVar[str] = "workflows.synthesis.recipes.gecko:Gecko"

    kind: Literal["gecko"] = "gecko"
    retriever: AnyRetriever
    neighbours: Annotated[int, Field(ge=2)] = 10
    rrf_k: Annotated[float, Field(ge=0)] = 60.0
    negative_rank: Annotated[int, Field(ge=2)] | None = None
    """From 1 in the fused order; None: the last."""

    @property
    def weighs(self) -> bool:
        return True


class ReasonIRSettings(RecipeSettings):
    """Long queries, queries that need reasoning, and hard negatives in a second turn (Shao et al. 2025).

    ``varied_length``: a query of ``words`` words, drawn for each unit, and a document that helps with it, both
    written about the matter of a passage. ``hard_query``: the passage is the document.
    """

    RECIPE: ClassVar[str] = "workflows.synthesis.recipes.reasonir:ReasonIR"

    kind: Literal["reasonir"] = "reasonir"
    parts: Each[Literal["varied_length", "hard_query"]] = ["varied_length", "hard_query"]  # noqa: RUF012
    words: tuple[Count, Count] = (300, 2000)
    negatives: NotNegative = 1
    """Written in further turns of the same conversation."""
    least_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """A query with fewer than this share of the words that it was to have is rejected."""


class Qwen3Settings(RecipeSettings):
    """Persona, type, length, difficulty and language are chosen first, then the query is written (Zhang et al. 2025).

    Of the choices ``persona`` five are offered to the model, which takes one that would look for the passage.
    """

    RECIPE: ClassVar[str] = "workflows.synthesis.recipes.qwen3:Qwen3"
    OFFERED: ClassVar[Sequence[str]] = ("persona",)

    kind: Literal["qwen3"] = "qwen3"
    per_passage: Count = 1
    languages: Annotated[list[str], Field(min_length=1)] = ["English"]  # noqa: RUF012


class RewritesSettings(RecipeSettings):
    """Rows that exist, asked in other words.

    ``paraphrase``: the same in other words. ``decontextualise``: a question that makes sense only beside its passage
    is made to stand alone. ``decompose``: a question over several passages becomes the searches that it needs, each
    with the passage that the model says it finds.
    """

    RECIPE: ClassVar[str] = "workflows.synthesis.recipes.rewrites:Rewrites"

    kind: Literal["rewrites"] = "rewrites"
    into: Each[Literal["paraphrase", "decontextualise", "decompose"]] = ["paraphrase"]  # noqa: RUF012

    @property
    def needs(self) -> Literal["passages", "rows", "nothing"]:
        return "rows"
