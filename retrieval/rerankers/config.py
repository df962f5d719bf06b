"""Settings of a model that scores pairs of query and passage. Imports nothing heavy.

{model: runs/reranker, batch_size: 16, max_tokens: 512, dtype: bfloat16}
{model: Qwen/Qwen3-Reranker-0.6B, template: qwen3, instruction: "Given a claim, find passages that refute it"}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from retrieval.encoders.config import AnyEncoder, named_family
from retrieval.rerankers.templates import TemplateName
from sleuth.errors import ConfigError
from sleuth.settings import Count, Settings

if TYPE_CHECKING:
    from retrieval.rerankers.scorer import PairScorer

_NOT_OF_ENCODERS = ("max_tokens", "dtype", "template", "instruction")
Dtype = Literal["float32", "bfloat16", "float16"]
MaxTokens = Annotated[int, Field(ge=8)]


class ScorerSettings(Settings):
    """The model of a reranker, and how it is run."""

    model: str | AnyEncoder
    """Folder or hub name of a cross-encoder with one label, or of a language model that answers yes or no; or an
    encoder: its folder, or a mapping such as {kind: multivector, backbone: NAME}."""
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
        if not isinstance(self.model, str) or named_family(self.model) is not None:
            return self._open_encoder()
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

    def _open_encoder(self) -> PairScorer:
        from retrieval.encoders.encoder import Encoder
        from retrieval.encoders.loading import open_encoder
        from retrieval.rerankers.encoder_scorer import EncoderScorer

        given = next((name for name in _NOT_OF_ENCODERS if getattr(self, name) is not None), None)
        if given is not None:
            raise ConfigError(
                f"{given} does not apply to a reranker that is an encoder",
                "an encoder is read as it was saved: leave it out",
            )
        encoder = open_encoder(self.model, device=self.device)
        if not isinstance(encoder, Encoder):
            raise ConfigError(
                f"an encoder of kind {encoder.family.kind} ranks nothing by itself",
                "choose one of kind dense, sparse or multivector",
            )
        return EncoderScorer(encoder, self.batch_size)
