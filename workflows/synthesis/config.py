"""Settings of ``sleuth synthesize``. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from agent.writing.config import AnyWriter
from envs.toy_world.config import WorldSettings
from retrieval.training.config import SourceSettings
from sleuth.settings import Count, Settings, Share, apply_override, read_layers, validate
from workflows.config import fill_out
from workflows.synthesis.filters.config import AnyFilter
from workflows.synthesis.recipes.config import AnyRecipe

_SERVED = ("base_url", "key_variable", "concurrency", "timeout_s", "retries")
GROWING = (
    *("out", "limit", "keep", "max_failed", "threads"),
    *(f"{section}.{name}" for section in ("writer", "writer.policy.openai") for name in _SERVED),
)
"""Settings that a run may be resumed with at another value: more is written, or a server is spoken to otherwise; no
row changes."""


_CHOOSING = ("min_words", "max_words", "held_out")
"""Settings of the passages that are written about, of which some recipes have none."""


class PassageSettings(Settings):
    """Which passages of the corpus are written about. A passage shown to the writer is cut after ``show_words``."""

    min_words: Annotated[int, Field(ge=0)] = 20
    max_words: Count | None = None
    show_words: Count = 300
    held_out: bool = False
    """Also write about passages that are gold for a dev or test question of the corpus's own judgements, and take them
    for neighbours."""


class SamplingSettings(Settings):
    """How the writer samples. Verdicts are asked for at temperature 0, and what is asked for again never is."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0


class SynthesisSettings(Settings):
    """One run of writing. ``{out}`` in any string stands for the run folder.

    Units (passages, rows, or numbers where a recipe needs nothing) are taken in an order drawn by ``seed``, at most
    ``limit`` of them, and until ``keep`` rows have passed the filters. ``chunk`` units are written together; a chunk
    that is done is never written again. A reply that cannot be read is asked for ``attempts`` times.
    """

    out: Path
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Count | None = None
    world: WorldSettings | None = None
    writer: AnyWriter
    recipe: AnyRecipe
    corpus: str | None = None
    passages: PassageSettings = PassageSettings()
    data: list[SourceSettings] = Field(default_factory=list)
    sampling: SamplingSettings = SamplingSettings()
    filters: list[AnyFilter] = Field(default_factory=list)
    limit: Count | None = None
    keep: Count | None = None
    attempts: Count = 3
    chunk: Count = 64
    max_failed: Share = 0.5
    """Of the requests made at once; if more get no reply (a server that is away, prompts too long for the model), the
    run stops, and can be resumed, also with a larger share. What has failed before is not counted again."""

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        needs = self.recipe.needs
        if needs == "passages" and self.corpus is None:
            raise ValueError(f"recipe {self.recipe.kind} writes about passages: give corpus")
        chosen = [name for name in _CHOOSING if getattr(self.passages, name) != getattr(PassageSettings(), name)]
        if needs != "passages" and chosen:
            raise ValueError(f"passages.{chosen[0]} does nothing for recipe {self.recipe.kind}; leave it out")
        if needs == "rows" and not self.data:
            raise ValueError(f"recipe {self.recipe.kind} rewrites rows: give data")
        if needs != "rows" and self.data:
            raise ValueError(f"data does nothing for recipe {self.recipe.kind}; leave it out")
        if needs == "nothing" and self.limit is None:
            raise ValueError(f"recipe {self.recipe.kind} could go on for ever: give limit")
        return self


def load_synthesis(path: Path, overrides: list[str], out: Path | None = None) -> SynthesisSettings:
    """The settings of a YAML file with ``key=value`` overrides. Raises ConfigError naming what to fix."""
    values = read_layers(path)
    for override in overrides:
        apply_override(values, override)
    if out is not None:
        values["out"] = str(out)
    return validate(SynthesisSettings, fill_out(values), str(path))
