"""What is added to InfoNCE as a config asks for it: a family's regulariser, a teacher's scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from retrieval.encoders.encoder import Encoder
from retrieval.training.config import TrainingSettings
from retrieval.training.distillation import distillation
from retrieval.training.flops import flops_terms
from retrieval.training.objective import Scored, Terms
from retrieval.training.reading import reading

MakeTerms = Callable[[TrainingSettings, Encoder], Terms | None]
"""The terms that settings ask for; None where they ask for none. Raises ConfigError where the encoder has none."""

MAKERS: Sequence[MakeTerms] = (flops_terms, distillation, reading)


def terms_of(settings: TrainingSettings, encoder: Encoder) -> Terms | None:
    """All terms together; None where there are none."""
    chosen = [terms for make in MAKERS if (terms := make(settings, encoder)) is not None]

    def together(scored: Scored) -> Mapping[str, Tensor]:
        return {name: term for terms in chosen for name, term in terms(scored).items()}

    return together if chosen else None
