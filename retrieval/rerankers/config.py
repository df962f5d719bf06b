"""Settings of a model that scores pairs of query and passage. Imports nothing heavy.

{model: runs/reranker, batch_size: 16, max_tokens: 512, dtype: bfloat16}
{model: Qwen/Qwen3-Reranker-0.6B, template: qwen3, instruction: "Given a claim, find passages that refute it"}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from retrieval.rerankers.templates import TemplateName
from sleuth.settings import Count, Settings

if TYPE_CHECKING:
    from retrieval.rerankers.scorer import PairScorer

Dtype = Literal["float32", "bfloat16", "float16"]
MaxTokens = Annotated[int, Field(ge=8)]


class ScorerSettings(Settings):
    """The model of a reranker, and how it is run."""

    model: str
    """Folder or hub name of a cross-encoder with one label, or of a language model that answers yes or no."""
    batch_size: Count = 32
    """Pairs that the model reads at once."""
    max_tokens: MaxTokens | None = None
    """Tokens of query, passage and template; longer passages are cut. None: as many as the model says."""
    dtype: Dtype | None = None
    """Of the weights; None: as saved."""
    device: str | None = None
    """None: a GPU where there is one."""
    template: TemplateName | None = None
    """Of a language model; None: the one saved with it."""
    instruction: str | None = None
    """What counts as relevant, for a language model; None: the instruction saved with it, or the template's own."""

    def open_scorer(self) -> PairScorer:
        """Raises ArtifactError or ConfigError where the model cannot be loaded or asked that way."""
        from retrieval.rerankers.scorer import CrossEncoderScorer

        return CrossEncoderScorer(
            self.model,
            batch_size=self.batch_size,
            max_tokens=self.max_tokens,
            dtype=self.dtype,
            device=self.device,
            template=self.template,
            instruction=self.instruction,
        )
