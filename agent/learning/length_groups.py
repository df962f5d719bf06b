"""Runs rows of similar length through the model together, to compute little padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import pad

LEAST_ROWS = 4
"""Minimum rows of a group: with fewer, matrix products are inefficient."""
LEAST_SAVING = 0.1
"""Minimum fraction of a group's positions that splitting it must save."""

Scored = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""Log-probs and entropies [rows, kept columns], and an auxiliary loss."""


def length_groups(lengths: Sequence[int]) -> list[list[int]]:
    """Rows, longest first, split where that saves padding; a single group if lengths are similar."""
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
    """Positions saved by padding the rows from ``place`` on to their own maximum length."""
    return (len(rows) - place) * (lengths[rows[0]] - lengths[rows[place]])


def score_trimmed(
    score: Callable[[torch.Tensor, torch.Tensor, int, list[int]], Scored],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    keep: int,
    *,
    split: bool,
) -> Scored:
    """The result of ``score`` for rows [rows, columns], of which the last ``keep`` columns count, with less padding.

    ``score`` gets ids and mask of a group, the number of its last columns that count, and which rows are in it.
    Columns that are padding in every row of a group are removed on both sides; log-probs and entropies are 0 there.
    ``split`` False keeps all rows in one group, for processes that must call the model equally often.
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
        logps, entropies, auxiliary = score(*window, keep - (columns - end), rows)
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
