"""Demonstration plans on disk: one JSON object a line, the question as a FlashRAG row."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sleuth.errors import DataError
from sleuth.types import Plan, PlanStep, Question


def question_row(question: Question) -> dict[str, Any]:
    """The question as a FlashRAG row."""
    metadata = {"type": question.kind, "supporting_titles": list(question.supporting_titles)}
    return {
        "id": question.id,
        "question": question.text,
        "golden_answers": list(question.answers),
        "metadata": metadata,
    }


def write_plans(path: str | Path, plans: Iterable[Plan]) -> None:
    with Path(path).open("w", encoding="utf-8") as file:
        for plan in plans:
            row = {
                "question": question_row(plan.question),
                "steps": [asdict(step) for step in plan.steps],
                "think": plan.think,
                "answer": plan.answer,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_plans(path: str | Path) -> list[Plan]:
    """Plans written by ``write_plans``. Raises DataError naming the line that is not one."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"no plans at {path}", "make a world with: sleuth world") from None
    plans = []
    for number, line in enumerate(lines, start=1):
        try:
            plans.append(_plan(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: not a plan: {error!r}") from None
    return plans


def _plan(row: dict[str, Any]) -> Plan:
    asked, metadata = row["question"], row["question"].get("metadata", {})
    question = Question(
        asked["id"],
        asked["question"],
        tuple(asked["golden_answers"]),
        tuple(metadata.get("supporting_titles", ())),
        metadata.get("type", ""),
    )
    return Plan(question, tuple(PlanStep(**step) for step in row["steps"]), row["think"], row["answer"])
