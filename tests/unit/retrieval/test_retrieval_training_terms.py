"""Directions, weights of hard negatives and distillation against sentence-transformers' losses and plain formulas."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import (
    DistillKLDivLoss,
    MarginMSELoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import dot_score
from torch import Tensor, nn

from retrieval.encoders.dense import DENSE
from retrieval.encoders.family import Encoded
from retrieval.training.config import InBatchSettings, TrainingSettings
from retrieval.training.distillation import distillation, kl_divergence, margin_mse
from retrieval.training.loss import Columns, Targets, mask_golds
from retrieval.training.objective import Scored, contrast
from retrieval.training.sampling import Batch
from sleuth.types import Passage

N, HARD, DIM = 5, 2, 8
ALL = ("query_to_passage", "passage_to_query", "query_to_query", "passage_to_passage")
NAMES = {"query_to_passage": "query_to_doc", "passage_to_query": "doc_to_query"}
NAMES |= {"query_to_query": "query_to_query", "passage_to_passage": "doc_to_doc"}


def vectors(rows: int, seed: int) -> Tensor:
    made = torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.functional.normalize(made, dim=1).requires_grad_()


def targets(golds: list[frozenset[str]] | None = None) -> Targets:
    """N positives, then ``HARD`` negatives of each query; no passage stands twice."""
    keys = [f"p{i}" for i in range(N)] + [f"n{i}.{j}" for i in range(N) for j in range(HARD)]
    negatives = [range(N + i * HARD, N + (i + 1) * HARD) for i in range(N)]
    return mask_golds(range(N), Columns(keys), golds or [frozenset()] * N, negatives)


def ours(q: Tensor, p: Tensor, chosen: dict[str, Any], related: Targets | None = None) -> Tensor:
    encoder: Any = SimpleNamespace(family=DENSE, settings=SimpleNamespace(unit_length=True))
    settings = InBatchSettings(temperature=0.1, **chosen)
    return contrast(encoder, Encoded(q), Encoded(p), related or targets(), settings)[0].loss


def columns(p: Tensor) -> list[Tensor]:
    """The positives, and the first, second ... negative of every query, as the library takes them."""
    return [p[:N], *(p[[N + i * HARD + j for i in range(N)]] for j in range(HARD))]


@pytest.mark.parametrize(
    ("directions", "partition", "hardness"),
    [
        (ALL[:1], "joint", None),
        (ALL[:2], "per_direction", None),
        (ALL[:2], "joint", None),
        ((ALL[0], ALL[2]), "joint", None),
        ((ALL[0], ALL[3]), "joint", None),
        (ALL, "joint", None),
        *[(ALL[:1], "joint", mode) for mode in ("in_batch_negatives", "hard_negatives", "all_negatives")],
        (ALL, "joint", "all_negatives"),
        (ALL[:2], "per_direction", "in_batch_negatives"),
    ],
)
def test_loss_and_gradients_are_the_librarys(directions: tuple[str, ...], partition: Any, hardness: Any) -> None:
    q, p = vectors(N, 0), vectors(N * (1 + HARD), 1)
    chosen = {"directions": directions, "partition": partition}
    own = ours(q, p, chosen | ({"hardness": {"mode": hardness, "strength": 5.0}} if hardness else {}))
    mine = torch.autograd.grad(own, [q, p])
    library = MultipleNegativesRankingLoss(
        None,  # type: ignore[arg-type]
        scale=10.0,
        similarity_fct=dot_score,
        directions=tuple(NAMES[name] for name in directions),  # type: ignore[arg-type]
        partition_mode=partition,
        hardness_mode=hardness,
        hardness_strength=5.0 if hardness else 0.0,
    )
    theirs = library.compute_loss_from_embeddings([q, *columns(p)], torch.empty(0))
    torch.testing.assert_close(own, theirs, rtol=1e-10, atol=0)
    for found, expected in zip(mine, torch.autograd.grad(theirs, [q, p]), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_golds_are_no_negatives_in_any_direction() -> None:
    """Query 0 is also answered by the positive of query 1: by number, what each softmax holds."""
    q, p = vectors(N, 0), vectors(N * (1 + HARD), 1)
    related = targets([frozenset({"p1"}), *[frozenset()] * (N - 1)])
    logit = lambda a, b: math.exp(float(a.detach() @ b.detach()) / 0.1)
    total = 0.0
    for i in range(N):
        own = [N + i * HARD + j for j in range(HARD)]
        other = {0: [1]}.get(i, [])
        mass = sum(logit(q[i], p[c]) for c in range(len(p)) if c not in other)
        mass += sum(logit(q[j], p[i]) for j in range(N) if (j, i) != (0, 1))
        mass += sum(logit(q[i], q[j]) for j in range(N) if j != i and {i, j} != {0, 1})
        mass += sum(logit(p[i], p[c]) for c in range(len(p)) if c not in [i, *own, *other])
        total -= math.log(logit(q[i], p[i]) / mass)
    assert float(ours(q, p, {"directions": ALL}, related).detach()) == pytest.approx(total / N, rel=1e-9)


TEACHER = torch.randn(N, 1 + HARD, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 3


def scored(q: Tensor, p: Tensor, teacher: Tensor) -> Scored:
    batch = Batch(["?"] * N, [Passage(str(i), "", "") for i in range(len(p))], targets(), [""] * N, teacher.tolist())
    return Scored(0, batch, Encoded(q), Encoded(p), q @ p.T)


def terms(q: Tensor, p: Tensor, teacher: Tensor, **chosen: Any) -> dict[str, Tensor]:
    made = distillation(InBatchSettings(temperature=0.5, distillation=chosen), None)  # type: ignore[arg-type]
    assert made is not None
    return dict(made(scored(q, p, teacher)))


def test_kl_is_the_librarys() -> None:
    """Which multiplies it with the square of the student's temperature."""
    q, p = vectors(N, 0), vectors(N * (1 + HARD), 1)
    found = terms(q, p, TEACHER, kl=2.0, temperature=0.2, teacher_temperature=3.0)
    library = DistillKLDivLoss(None, student_temperature=0.2, teacher_temperature=3.0)  # type: ignore[arg-type]
    theirs = library.compute_loss_from_embeddings([q, *columns(p)], TEACHER)
    assert set(found) == {"kl"}
    torch.testing.assert_close(found["kl"], 2.0 * theirs / 0.2**2, rtol=1e-10, atol=0)
    usual = terms(q, p, TEACHER)["kl"]
    torch.testing.assert_close(usual, terms(q, p, TEACHER, temperature=0.5)["kl"])


def test_margin_mse_is_the_librarys() -> None:
    q, p = vectors(N, 0), vectors(N * (1 + HARD), 1)
    library = MarginMSELoss(None)  # type: ignore[arg-type]
    for temperature in (1.0, 0.2):  # which the library does not have: scores are divided by it beforehand
        found = terms(q, p, TEACHER, kl=0.0, margin_mse=0.5, temperature=temperature, teacher_temperature=4.0)
        theirs = library.compute_loss_from_embeddings([q / temperature, *columns(p)], TEACHER / 4)
        assert set(found) == {"margin_mse"}
        torch.testing.assert_close(found["margin_mse"], 0.5 * theirs, rtol=1e-10, atol=0)


def test_passages_without_a_score_are_left_out() -> None:
    nan = math.nan
    student = torch.tensor([[1.0, 0.5, 0.2], [0.3, 0.9, 0.1], [0.1, 0.2, 0.3]], requires_grad=True)
    teacher = torch.tensor([[2.0, nan, 1.0], [nan, 1.0, 0.0], [1.0, nan, nan]])
    p, log_q = torch.tensor([2.0, 1.0]).softmax(0), torch.tensor([1.0, 0.2]).log_softmax(0)
    second_p, second_q = torch.tensor([1.0, 0.0]).softmax(0), torch.tensor([0.9, 0.1]).log_softmax(0)
    expected = (float((p * (p.log() - log_q)).sum()) + float((second_p * (second_p.log() - second_q)).sum())) / 2
    found = kl_divergence(student, teacher)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-6)
    found.backward()
    assert student.grad is not None and student.grad.isfinite().all()
    assert student.grad[0, 1] == 0 and not student.grad[2].any()
    assert float(margin_mse(student.detach(), teacher)) == pytest.approx((0.8 - 1.0) ** 2, rel=1e-6)
    nothing = torch.full((3, 3), nan)
    assert float(kl_divergence(student.detach(), nothing)) == float(margin_mse(student.detach(), nothing)) == 0.0


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"directions": ["passage_to_query"]}, "must hold query_to_passage"),
        ({"directions": ["query_to_passage", "query_to_query"], "partition": "per_direction"}, "partition: joint"),
        ({"distillation": {"kl": 0}}, "nothing is distilled"),
        ({"hardness": {"strength": 0}}, "greater than 0"),
        ({"train": "query", "directions": list(ALL)}, "passages, which stay as they are"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingSettings.model_validate(chosen)
