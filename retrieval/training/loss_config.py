"""Settings of what is added to InfoNCE: a teacher's scores, further directions, weights of hard negatives. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sleuth.settings import Rate, Settings

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Direction = Literal["query_to_passage", "passage_to_query", "query_to_query", "passage_to_passage"]
Batches = Literal["mixed", "one_source"]


class DistillationSettings(Settings):
    """Learning the scores that a teacher gave to a query's own passages, its positive and its hard negatives.

    Rows carry them (``score`` beside a passage); ``mining.teacher`` writes them. Passages without one are left out.
    """

    kl: Weight = 1.0
    """Weight of KL(teacher || student) between the softmaxes of their scores (Lin et al. 2020). The library's loss is
    this times ``temperature`` squared."""
    margin_mse: Weight = 0.0
    """Weight of the squared difference between their margins from positive to negative (Hofstätter et al. 2020)."""
    contrastive: Weight = 1.0
    """Weight of InfoNCE beside them."""
    temperature: Rate | None = None
    """The student's scores are divided by it, in both; None: ``training.temperature``. At 1, ``margin_mse`` is the
    library's loss; below, cosines can follow margins of several units."""
    teacher_temperature: Rate = 1.0
    """The teacher's scores are divided by it, in both."""

    @model_validator(mode="after")
    def _does_something(self) -> DistillationSettings:
        if not self.kl and not self.margin_mse:
            raise ValueError("kl and margin_mse are both 0, so nothing is distilled; leave distillation out")
        return self


class ReadingSettings(Settings):
    """A page trunk from scratch also learns which letter each patch shows, from where they were drawn.

    This is supervision beside the questions: it takes pages that were rendered, or whose letters are otherwise known.
    """

    letters: Path
    """The ``letters.jsonl`` that ``sleuth pages`` writes beside a corpus."""
    weight: Weight = 1.0


class HardnessSettings(Settings):
    """Negatives weigh the more in the softmax the higher they score: ``strength`` times the score is added to a logit.

    sentence-transformers' ``hardness_mode`` and ``hardness_strength``.
    """

    mode: Literal["in_batch_negatives", "hard_negatives", "all_negatives"] = "hard_negatives"
    """Which negatives: the query's own (Schechter Vera et al. 2025 take strength 5), those of other queries (Lan et al.
    2025 take 9), or all."""
    strength: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5.0
