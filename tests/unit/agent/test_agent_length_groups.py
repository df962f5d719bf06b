"""Rows scored in groups of like length: the same figures for fewer positions."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from agent.learning.length_groups import length_groups, score_trimmed

lengths = st.lists(st.integers(1, 300), min_size=1, max_size=40)


def positions(groups, lengths):
    return sum(len(rows) * max(lengths[row] for row in rows) for rows in groups)


@given(lengths)
def test_every_row_is_in_one_group_and_no_more_is_computed_than_in_one(lengths):
    groups = length_groups(lengths)
    assert sorted(row for rows in groups for row in rows) == list(range(len(lengths)))
    assert positions(groups, lengths) <= len(lengths) * max(lengths)


def test_one_long_row_does_not_have_the_short_ones_padded_to_it():
    lengths = [500] + [100] * 63
    assert positions(length_groups(lengths), lengths) <= 4 * 500 + 60 * 100


def test_rows_that_are_alike_stay_together():
    assert len(length_groups([100, 101, 99, 100] * 8)) == 1


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 30)), min_size=1, max_size=16), st.booleans(), st.booleans()
)
def test_what_counts_is_scored_as_without_cutting(shape, split, left):
    prompt, keep = max(p for p, _ in shape), max(c for _, c in shape)
    mask = torch.tensor([[0] * (prompt - p) + [1] * (p + c) + [0] * (keep - c) for p, c in shape])
    ids = torch.arange(mask.numel()).reshape(mask.shape) * mask

    def score(ids, mask, keep, _read):
        """Depends on the row's own tokens up to a column alone, as a causal model does."""
        totals = (ids * mask).cumsum(1).float()
        return totals[:, -keep:], (totals * 2)[:, -keep:], torch.ones(())

    whole, _, _ = score(ids, mask, keep, None)
    logps, entropies, auxiliary = score_trimmed(score, ids, mask, keep, split=split, left=left)
    counted = mask[:, -keep:].bool()
    assert torch.equal(logps[counted], whole[counted])
    assert entropies is not None and torch.equal(entropies[counted], 2 * whole[counted])
    assert auxiliary == 1
    assert logps.shape == whole.shape


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 30)), min_size=1, max_size=16), st.booleans(), st.booleans()
)
def test_it_is_known_of_each_token_whether_it_is_read(shape, split, left):
    prompt, keep = max(p for p, _ in shape), max(c for _, c in shape)
    mask = torch.tensor([[0] * (prompt - p) + [1] * (p + c) + [0] * (keep - c) for p, c in shape])
    ids = (torch.arange(mask.numel()).reshape(mask.shape) + 1) * mask
    read = (ids[:, -keep:] % 3 == 1) & mask[:, -keep:].bool()

    def score(ids, _mask, keep, read):
        assert read is not None and read.shape == (len(ids), keep)
        assert torch.equal(read, read & (ids[:, -keep:] % 3 == 1))
        return read.float(), None, None

    found, _, _ = score_trimmed(score, ids, mask, keep, split=split, left=left, read=read)
    counted = mask[:, -keep:].bool()
    assert torch.equal(found[counted].bool(), read[counted])


def test_gradients_reach_the_rows_they_came_from():
    mask = torch.tensor([[1] * 20] * 4 + [[1] * 3 + [0] * 17] * 4)
    weights = torch.randn(8, 20, requires_grad=True)
    seen = iter([weights[:4], weights[4:]])

    def score(ids, mask, keep, _read):
        rows = next(seen)
        return rows[:, : ids.shape[1]][:, -keep:], None, None

    logps, _, _ = score_trimmed(score, torch.zeros_like(mask), mask, 18, split=True)
    logps[:4].sum().backward()
    assert weights.grad is not None
    assert weights.grad[:4, -18:].eq(1).all() and weights.grad[4:].eq(0).all()
