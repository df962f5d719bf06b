"""Rows of like length go through the model together, so that little of what it computes is padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import pad

LEAST_ROWS = 4
"""Rows of a group: fewer make a matrix product inefficient."""
LEAST_SAVING = 0.1
"""The share of a group's positions that cutting it in two must save."""

Scored = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""Log-probs and entropies [rows, kept columns], and an auxiliary loss."""


def length_groups(lengths: Sequence[int]) -> list[list[int]]:
    """Rows, longest first, cut where that saves padding: one group where they are alike."""
    return _cut(sorted(range(len(lengths)), key=lambda row: -lengths[row]), lengths)


def _cut(rows: list[int], lengths: Sequence[int]) -> list[list[int]]:
    places = range(LEAST_ROWS, len(rows) - LEAST_ROWS + 1)
    if not places:
        return [rows]
    place = max(places, key=lambda at: positions_saved(at, rows, lengths))
    if positions_saved(place, rows, lengths) < LEAST_SAVING * len(rows) * lengths[rows[0]]:
        return [rows]
    return _cut(rows[:place], lengths) + _cut(rows[place:], lengths)


def positions_saved(place: int, rows: Sequence[int], lengths: Sequence[int]) -> int:
    """Positions that are not computed when the rows from ``place`` on are padded to their own longest."""
    return (len(rows) - place) * (lengths[rows[0]] - lengths[rows[place]])


def score_trimmed(
    score: Callable[[torch.Tensor, torch.Tensor, int], Scored],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    keep: int,
    *,
    split: bool,
) -> Scored:
    """What ``score`` gives for rows [rows, columns] whose last ``keep`` columns count, without computing their padding.

    Columns that are padding in every row of a group are cut off on both sides; log-probs and entropies are 0 there.
    ``split`` False keeps all rows in one group, as processes must that enter the model equally often.
    """
    columns = attention_mask.shape[1]
    present = attention_mask.bool()
    begins = present.int().argmax(dim=1).tolist()
    ends = (columns - present.flip(1).int().argmax(dim=1)).tolist()
    lengths = [end - begin for begin, end in zip(begins, ends, strict=True)]
    groups = length_groups(lengths) if split else [list(range(len(lengths)))]
    parts: list[Scored] = []
    for rows in groups:
        begin = min(min(begins[row] for row in rows), columns - keep - 1)
        end = max(max(ends[row] for row in rows), columns - keep + 1)
        window = (input_ids[rows, begin:end], attention_mask[rows, begin:end])
        logps, entropies, auxiliary = score(*window, keep - (columns - end))
        widened = None if entropies is None else pad(entropies, (0, columns - end))
        parts.append((pad(logps, (0, columns - end)), widened, auxiliary))
    order = torch.tensor([row for rows in groups for row in rows], device=input_ids.device).argsort()
    entropy_parts = [part[1] for part in parts if part[1] is not None]
    auxiliaries = [part[2] for part in parts if part[2] is not None]
    return (
        torch.cat([part[0] for part in parts])[order],
        torch.cat(entropy_parts)[order] if entropy_parts else None,
        torch.stack(auxiliaries).mean() if auxiliaries else None,
    )
