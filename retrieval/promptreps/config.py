"""Settings of PromptReps (Zhuang et al. 2024): how an instruct model is asked, and the index of both its answers.

sleuth index CORPUS --out runs/promptreps --kind promptreps --encoder '{kind: promptreps, backbone: smollm2}'
retriever: {kind: promptreps, index: runs/promptreps, parts: both}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from retrieval.config import Count, NotNegative
from retrieval.encoders.config import AnyEncoder, EncoderKind, Role, Tokens, WeightDtype
from retrieval.encoders.index_config import EncodedIndexSettings

TEXT = "{text}"
Part = Literal["both", "dense", "sparse"]


def _one_text(template: str) -> str:
    if template.count(TEXT) != 1:
        raise ValueError(f"the template has {template.count(TEXT)} places for the text; write {TEXT} once")
    return template


Template = Annotated[str, AfterValidator(_one_text)]


def _asking(role: str) -> str:
    return (
        f'{role.capitalize()}: "{TEXT}". Use one word to represent the {role} in a retrieval task. '
        "Make sure your word is in lowercase."
    )


class PromptRepsChoice(EncoderKind):
    """An instruct model that is asked for one word; nothing is trained. The prompts are the paper's."""

    LOADER: ClassVar[str] = "retrieval.promptreps.encoder:open_promptreps"

    kind: Literal["promptreps"] = "promptreps"
    backbone: str
    """Folder, hub name or GGUF file of a causal language model with a chat template, or ``smollm2``."""
    part: Part = "both"
    """What is kept of an answer: dense goes into an index of kind dense, sparse into one of kind sparse."""
    system_prompt: str = "You are an AI assistant that can understand human language."
    """Left out if empty, and put before the question if the chat template has no place for it."""
    query_template: Template = _asking("query")
    passage_template: Template = _asking("passage")
    answer: str = 'The word is: "'
    """How the model's answer begins; the next token is the word."""
    query_max_tokens: Tokens = 64
    passage_max_tokens: Tokens = 256
    """Of the text alone; longer texts are cut."""
    terms: Annotated[int, Field(ge=1, le=4096)] = 128
    """Tokens of a text that keep a weight, the heaviest."""
    dtype: WeightDtype = "float32"

    def template(self, role: Role) -> str:
        return self.query_template if role == "query" else self.passage_template

    def max_tokens(self, role: Role) -> int:
        return self.query_max_tokens if role == "query" else self.passage_max_tokens


def _asked_so(value: object) -> object:
    """An encoder without a kind is the model to ask."""
    values = {"backbone": value} if isinstance(value, str) else value
    return {"kind": "promptreps", **values} if isinstance(values, Mapping) else values


class PromptRepsSettings(EncodedIndexSettings):
    """Both indexes in one folder; a search asks the model once a query."""

    INDEX: ClassVar[str] = "retrieval.promptreps.index:PROMPTREPS_INDEX"
    MADE: ClassVar[Mapping[str, object]] = {"dtype": "float32"}

    kind: Literal["promptreps"] = "promptreps"
    encoder: Annotated[AnyEncoder | None, BeforeValidator(_asked_so)] = None
    dtype: Literal["float32", "float16", "int8"] | None = None
    """How it keeps its vectors; None: as it does, float32 for a new one."""
    parts: Part = "both"
    """What is searched; both: fused."""
    fusion: Literal["sum", "rrf"] = "sum"
    """By normalised weighted sum, as in the paper, or by reciprocal rank."""
    weights: tuple[NotNegative, NotNegative] | None = None
    """Of dense and sparse; None: equal ones."""
    rrf_k: NotNegative = 60.0
    depth: Count | None = None
    """Hits of each part that are fused; None: 100. No more than those are returned."""

    @property
    def most_hits(self) -> int | None:
        from retrieval.combine.parts import HYBRID_DEPTH

        return (self.depth or HYBRID_DEPTH) if self.parts == "both" else None

    @classmethod
    def named(cls, encoder: Any) -> Any:
        return _asked_so(encoder)

    def tuning(self) -> dict[str, Any]:
        names = ("parts", *(("fusion", "weights", "rrf_k", "depth") if self.parts == "both" else ()))
        return {name: getattr(self, name) for name in names}
