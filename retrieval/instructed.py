"""Texts with an instruction each, which models read one instruction at a time."""

from __future__ import annotations

from collections.abc import Sequence


def by_instruction(instructions: Sequence[str]) -> dict[str, list[int]]:
    """The places of each instruction, in order of first appearance."""
    found: dict[str, list[int]] = {}
    for place, instruction in enumerate(instructions):
        found.setdefault(instruction, []).append(place)
    return found
