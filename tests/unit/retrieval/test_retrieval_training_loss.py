"""InfoNCE against the formula, its masks, and gradient caching against one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retrieval.encoders.dense import DENSE
from retrieval.encoders.family import Encoded
from retrieval.training.config import InBatchSettings
from retrieval.training.gradient_cache import cached_backward
from retrieval.training.loss import Columns, ContrastiveLoss, Targets, info_nce, mask_golds
from retrieval.training.objective import contrast

COLUMNS = ["a", "b", "c", "n1", "n2", "n3"]


def reference(
    queries: Tensor, passages: Tensor, positive: Sequence[int], masked: set[tuple[int, int]], t: float
) -> float:
    """-1/N sum_i log(exp(s_ip/T) / sum_j exp(s_ij/T)), number by number."""
    total = 0.0
    for i, p in enumerate(positive):
        exps = {j: math.exp(float(queries[i] @ passages[j]) / t) for j in range(len(passages)) if (i, j) not in masked}
        total -= math.log(exps[p] / sum(exps.values()))
    return total / len(positive)


def vectors(rows: int, seed: int, unit: bool = True) -> Tensor:
    made = torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.functional.normalize(made, dim=1) if unit else made


@pytest.mark.parametrize("temperature", [1.0, 0.05, 0.02])
def test_loss_equals_the_formula(temperature: float) -> None:
    q, p = vectors(3, 0), vectors(6, 1)
    targets = mask_golds([0, 1, 2], Columns(COLUMNS), [frozenset("a"), frozenset("b"), frozenset("c")])
    found = info_nce(q @ p.T, targets, temperature=temperature)
    assert float(found.loss) == pytest.approx(reference(q, p, [0, 1, 2], set(), temperature), rel=1e-12)
    assert found.masked == 0.0


def test_weights_count_each_query_so_often() -> None:
    q, p, targets = vectors(3, 0), vectors(3, 1), Targets(torch.arange(3), torch.zeros(3, 3, dtype=torch.bool))
    each = [info_nce((q @ p.T)[i : i + 1], targets.rows(slice(i, i + 1)), temperature=0.5).loss for i in range(3)]
    weighted = info_nce(q @ p.T, targets, temperature=0.5, weights=[0.5, 2.0, 0.5])
    torch.testing.assert_close(weighted.loss, (0.5 * each[0] + 2.0 * each[1] + 0.5 * each[2]) / 3)
    apart = info_nce(q @ p.T, targets, temperature=0.5, weights=[0.5, 2.0, 0.5], beside=[q @ q.T], joint=False)
    plain = info_nce(q @ p.T, targets, temperature=0.5, beside=[q @ q.T], joint=False)
    assert apart.loss != plain.loss


def test_masked_passages_are_no_negatives() -> None:
    q, p = vectors(3, 0), vectors(6, 1)
    golds = [frozenset({"a", "n3"}), frozenset("b"), frozenset({"c", "a"})]
    targets = mask_golds([0, 1, 2], Columns(COLUMNS), golds)
    expected = {(0, 5), (2, 0)}
    assert {tuple(cell) for cell in targets.masked.nonzero().tolist()} == expected
    found = info_nce(q @ p.T, targets, temperature=0.1)
    assert float(found.loss) == pytest.approx(reference(q, p, [0, 1, 2], expected, 0.1), rel=1e-12)


def test_a_second_copy_of_the_positive_is_masked_and_the_positive_itself_never() -> None:
    targets = mask_golds([0, 1], Columns(["a", "b", "a", "b", "c"]), [frozenset("a"), frozenset("b")])
    assert targets.masked.tolist() == [[False, False, True, False, False], [False, False, False, True, False]]


def test_margin_masks_what_outscores_the_positive() -> None:
    q = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    p = torch.tensor([[0.5, 0.0], [0.56, 0.0], [0.64, 0.0], [0.1, 0.0]], dtype=torch.float64)
    targets = Targets(torch.tensor([0]), torch.zeros(1, 4, dtype=torch.bool))
    plain = info_nce(q @ p.T, targets, temperature=1.0)
    above = info_nce(q @ p.T, targets, temperature=1.0, margin=0.1)
    near = info_nce(q @ p.T, targets, temperature=1.0, margin=-0.05)
    assert float(plain.loss) == pytest.approx(reference(q, p, [0], set(), 1.0))
    assert float(above.loss) == pytest.approx(reference(q, p, [0], {(0, 2)}, 1.0))
    assert float(near.loss) == pytest.approx(reference(q, p, [0], {(0, 1), (0, 2)}, 1.0))
    assert near.masked == 0.5


def loss_of_sizes(q: Tensor, p: Tensor, targets: Targets, sizes: list[int], unit_length: bool) -> ContrastiveLoss:
    encoder: Any = SimpleNamespace(family=DENSE, settings=SimpleNamespace(unit_length=unit_length))
    chosen = InBatchSettings(dimensions=sizes, temperature=0.05)
    return contrast(encoder, Encoded(q), Encoded(p), targets, chosen)[0]


def test_matryoshka_is_the_mean_over_prefixes() -> None:
    q, p = vectors(3, 0), vectors(6, 1)
    targets = mask_golds([0, 1, 2], Columns(COLUMNS), [frozenset()] * 3)
    unit = lambda x: nn.functional.normalize(x, dim=1)
    both = loss_of_sizes(q, p, targets, [8, 4], unit_length=True)
    short = reference(unit(q[:, :4]), unit(p[:, :4]), [0, 1, 2], set(), 0.05)
    assert float(both.loss) == pytest.approx((reference(q, p, [0, 1, 2], set(), 0.05) + short) / 2, rel=1e-12)
    dot = loss_of_sizes(q, p, targets, [4], unit_length=False)
    assert float(dot.loss) == pytest.approx(reference(q[:, :4], p[:, :4], [0, 1, 2], set(), 0.05), rel=1e-12)


class Towers(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 8)).double()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(self.body(x), dim=1)


def gradients(
    dropout: float, temperature: float, sizes: tuple[int, int], cached: bool, seed: int = 7
) -> tuple[Tensor, list[Tensor]]:
    model = Towers(dropout)
    q, p = vectors(12, 2, unit=False), vectors(30, 3, unit=False)
    targets = mask_golds(
        list(range(12)), Columns([str(n) for n in range(30)]), [frozenset({str(i)}) for i in range(12)]
    )
    groups = [
        [lambda part=part: Encoded(model(part)) for part in group.split(size)]
        for group, size in ((q, sizes[0]), (p, sizes[1]))
    ]
    torch.manual_seed(seed)
    loss = cached_backward(
        groups, lambda p: info_nce(DENSE.scores(p[0], p[1]), targets, temperature=temperature).loss, cached=cached
    )
    return loss, [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("temperature", [1.0, 0.02])
@pytest.mark.parametrize("sizes", [(5, 7), (1, 1), (12, 30)])
def test_cached_equals_one_pass_over_the_whole_batch(temperature: float, sizes: tuple[int, int]) -> None:
    whole, expected = gradients(0.0, temperature, (12, 30), cached=False)
    loss, found = gradients(0.0, temperature, sizes, cached=True)
    torch.testing.assert_close(loss, whole, rtol=1e-12, atol=0)
    assert len(found) == 4
    for mine, theirs in zip(found, expected, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_cached_draws_the_same_dropout_twice() -> None:
    """With dropout, chunks by one pass and chunks by caching see the same random numbers."""
    whole, expected = gradients(0.3, 0.02, (5, 7), cached=False)
    loss, found = gradients(0.3, 0.02, (5, 7), cached=True)
    other, _ = gradients(0.3, 0.02, (5, 7), cached=True, seed=8)
    torch.testing.assert_close(loss, whole, rtol=1e-12, atol=0)
    assert not torch.isclose(loss, other)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_temperature_changes_the_cached_loss() -> None:
    assert gradients(0.0, 0.02, (5, 7), cached=True)[0] > 5 * gradients(0.0, 1.0, (5, 7), cached=True)[0]
