"""Distillation: the student's scores of a query's own passages follow those of a teacher."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retrieval.encoders.encoder import Encoder
from retrieval.training.config import TrainingSettings
from retrieval.training.objective import Scored, Terms

_UNKNOWN = float("nan")


def distillation(settings: TrainingSettings, _encoder: Encoder) -> Terms | None:
    """The terms ``kl`` and ``margin_mse``, as far as they have a weight; None without a section ``distillation``."""
    chosen = settings.distillation
    if chosen is None:
        return None
    temperature = chosen.temperature or settings.temperature

    def terms(scored: Scored) -> Mapping[str, Tensor]:
        student, teacher = own_lists(scored)
        student, teacher = student / temperature, teacher / chosen.teacher_temperature
        found = {}
        if chosen.kl:
            found["kl"] = chosen.kl * kl_divergence(student, teacher)
        if chosen.margin_mse:
            found["margin_mse"] = chosen.margin_mse * margin_mse(student, teacher)
        return found

    return terms


def own_lists(scored: Scored) -> tuple[Tensor, Tensor]:
    """Student's and teacher's scores [N, L] of each query's own passages, its positive first; NaN where unknown."""
    batch, device = scored.batch, scored.scores.device
    positives = batch.targets.positive.tolist()
    own = [[positive, *batch.targets.own(row)] for row, positive in enumerate(positives)]
    columns = pad_sequence([torch.tensor(row) for row in own], batch_first=True).to(device)
    known = [torch.tensor(list(row), dtype=scored.scores.dtype) for row in batch.teacher]
    teacher = pad_sequence(known, batch_first=True, padding_value=_UNKNOWN).to(device)
    return scored.scores.gather(1, columns), teacher


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over queries of KL(softmax(teacher) || softmax(student)), of scores [N, L], over the known ones of each.

    Queries with fewer than two known scores are left out; without any other the value is 0.
    """
    known = ~teacher.isnan()
    usable = known.sum(1) >= 2
    if not usable.any():
        return student.sum() * 0.0
    known, student, teacher = known[usable], student[usable], teacher[usable]
    log_q = student.masked_fill(~known, float("-inf")).log_softmax(1).masked_fill(~known, 0.0)
    log_p = teacher.masked_fill(~known, float("-inf")).log_softmax(1)
    return (log_p.exp() * (log_p.masked_fill(~known, 0.0) - log_q)).sum(1).mean()


def margin_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the margins from the first passage to each other, over pairs of known scores."""
    margins, wanted = student[:, :1] - student[:, 1:], teacher[:, :1] - teacher[:, 1:]
    known = ~wanted.isnan()
    if not known.any():
        return student.sum() * 0.0
    return (margins[known] - wanted[known]).square().mean()
