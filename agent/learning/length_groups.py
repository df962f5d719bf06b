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
Score = Callable[[torch.Tensor, torch.Tensor, int, torch.Tensor | None], Scored]
"""(ids, attention mask, how many of the last columns count, which of those are read or None for all) -> scores."""


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
    score: Score,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    keep: int,
    *,
    split: bool,
    left: bool = True,
    read: torch.Tensor | None = None,
) -> Scored:
    """The result of ``score`` for rows [rows, columns], of which the last ``keep`` columns count, with less padding.

    Columns that are padding in every row of a group are removed on both sides; log-probs and entropies are 0 there.
    ``split`` False keeps all rows in one group, for processes that must call the model equally often. ``left`` False
    moves every row to the first column, so that all padding comes after what it could influence. ``read`` [rows, keep]
    says which tokens' scores are read; None: all.
    """
    if not left:
        return _score_moved(score, input_ids, attention_mask, keep, split=split, read=read)
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
        kept = keep - (columns - end)
        logps, entropies, auxiliary = score(*window, kept, None if read is None else read[rows, :kept])
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


def _score_moved(
    score: Score,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    keep: int,
    *,
    split: bool,
    read: torch.Tensor | None,
) -> Scored:
    """As ``score_trimmed``, for rows without padding on the left. Prompts are scored too: they end in any column."""
    columns = attention_mask.shape[1]
    places = torch.arange(columns, device=attention_mask.device)
    begins = attention_mask.bool().int().argmax(dim=1, keepdim=True)
    source = places + begins
    mask = attention_mask.gather(1, source.clamp(max=columns - 1)) * (source < columns)
    ids = input_ids.gather(1, source.clamp(max=columns - 1))
    if read is not None:
        read = (pad(read, (columns - keep, 0)).gather(1, source.clamp(max=columns - 1)) & mask.bool())[:, 1:]
    logps, entropies, auxiliary = score_trimmed(score, ids, mask, columns - 1, split=split, read=read)
    # The first token has no log-prob: that of the token in column c stands at c - 1.
    where = (places[columns - keep :] - begins - 1).clamp(min=0)
    return logps.gather(1, where), None if entropies is None else entropies.gather(1, where), auxiliary
