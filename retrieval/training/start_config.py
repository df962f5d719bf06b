"""Settings of the encoder that a training starts from. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from retrieval.encoders.config import PRESETS as ENCODER_PRESETS
from retrieval.encoders.config import EncoderKind, ScratchSettings
from retrieval.encoders.page_config import PageScratchSettings
from sleuth.errors import did_you_mean
from sleuth.settings import Settings


def _scratch_kind(value: Any) -> str:
    family = value.get("family") if isinstance(value, dict) else getattr(value, "family", None)
    return "pages" if family == "pages" else "text"


Scratch = Annotated[
    Annotated[ScratchSettings, Tag("text")] | Annotated[PageScratchSettings, Tag("pages")],
    Discriminator(_scratch_kind),
]


class EncoderStart(Settings):
    """The encoder that training starts from: a preset on a backbone, a trained encoder as it is, or random weights."""

    preset: str | None = None
    backbone: str | None = None
    scratch: Scratch | None = None
    scratch_corpus: str | None = None
    """Passages that the tokenizer of a ``scratch`` backbone is made from."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Any of the encoder's family, over the preset or over what the backbone's folder says."""

    @model_validator(mode="before")
    @classmethod
    def _name_is_backbone(cls, value: Any) -> Any:
        return {"backbone": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_start(self) -> EncoderStart:
        if (self.backbone is None) == (self.scratch is None):
            raise ValueError("give either backbone or scratch")
        if self.scratch is not None and self.scratch_corpus is None:
            raise ValueError("scratch needs scratch_corpus, whose words it takes")
        if self.preset is not None and self.preset not in ENCODER_PRESETS:
            raise ValueError(f"no encoder preset; {did_you_mean(self.preset, ENCODER_PRESETS)}")
        _ = self.choice
        return self

    @property
    def choice(self) -> EncoderKind:
        """The encoder as the preset and ``settings`` describe it. Raises ConfigError."""
        return EncoderKind.of(
            **{"backbone": self.backbone or "scratch", **ENCODER_PRESETS.get(self.preset or "", {}), **self.settings}
        )
