"""Rows of token ids: joined, cut and padded."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def append_ids(
    tokens: Mapping[str, list[list[int]]], added: Sequence[list[int]], limit: int, ends: Container[int | None]
) -> None:
    """Put ``added`` ids before the ``ends`` of each row, at most half of ``limit``; its own ids give them room."""
    for row, given in enumerate(added):
        more = given[: limit // 2]
        ids = tokens["input_ids"][row]
        end = next((at for at in range(len(ids), 0, -1) if ids[at - 1] not in ends), 0)
        kept = min(end, max(0, limit - len(more) - (len(ids) - end)))
        for name, rows in tokens.items():
            new = more if name == "input_ids" else [rows[row][0]] * len(more)
            rows[row] = [*rows[row][:kept], *new, *rows[row][end:]]


def pad(tokenizer: Any, tokens: Mapping[str, list[list[int]]]) -> dict[str, Tensor]:
    """Pad on the right whatever the tokenizer's default, so that absolute positions are the same in every batch."""
    width = max(len(ids) for ids in tokens["input_ids"])
    fill = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
    padded = {
        name: torch.tensor([row + [fill.get(name, 0)] * (width - len(row)) for row in rows])
        for name, rows in tokens.items()
    }
    lengths = torch.tensor([len(ids) for ids in tokens["input_ids"]])
    padded["attention_mask"] = (torch.arange(width) < lengths[:, None]).long()
    return padded
