"""Demonstration plans: thoughts, queries and an answer written beforehand, read from and written to jsonl.

A plan is recited in the real environment; the retriever determines what is found. On disk: one JSON object per line,
the question as a FlashRAG row. Where what to do depends on what was found, see ``envs/searcher.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from envs.grammar import neutralise
from envs.questions import distant, layout_of, questions_from_rows
from sleuth.demonstrator import Move
from sleuth.rows import RawRow, read_rows
from sleuth.types import Answer, Plan, PlanStep, Question, Search, Turn


def question_row(question: Question) -> dict[str, Any]:
    """The question as a FlashRAG row."""
    metadata: dict[str, Any] = {"type": question.kind, "supporting_titles": list(question.supporting_titles)}
    known = {
        "pack": question.pack,
        "gold_ids": list(question.gold_ids),
        "steps": [asdict(step) for step in question.steps],
    }
    metadata |= {name: value for name, value in known.items() if value}
    if question.alternatives != distant(question.kind):
        metadata["alternatives"] = question.alternatives
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
    """Plans written by ``write_plans``. Raises DataError naming a line that is not a plan."""
    return [_read_plan(row, str(path)) for row in read_rows(path)]


def holds_plans(path: str | Path) -> bool:
    """Whether ``write_plans`` made the file, judging by its first row."""
    return Path(path).is_file() and "steps" in read_rows(path, 1)[0].fields


@dataclass(frozen=True, slots=True)
class Reciter:
    """Plays a plan, whatever is found."""

    plan: Plan

    @property
    def question(self) -> Question:
        return self.plan.question

    @property
    def hops(self) -> int:
        """How many searches it makes."""
        return len(self.plan.steps)

    def act(self, turns: Sequence[Turn]) -> Move:
        if len(turns) < self.hops:
            step = self.plan.steps[len(turns)]
            return Move(step.think, Search(step.query))
        return Move(self.plan.think, Answer(self.plan.answer))

    def lazily(self, hops: int) -> Reciter:
        return Reciter(lazy(self.plan, hops))


def lazy(plan: Plan, hops: int) -> Plan:
    """``plan`` ended after ``hops`` searches (at least 1), with the value found last as its answer.

    A plan with no more searches than that is returned unchanged. A thought of a plan says what was found and then what
    is needed; the last thought keeps only the former.
    """
    if hops < 1:
        raise ValueError("a demonstration needs at least one search")
    if hops >= len(plan.steps):
        return plan
    found, _, _ = plan.steps[hops].think.partition(". ")
    return replace(plan, steps=plan.steps[:hops], think=f"{found}.", answer=plan.steps[hops - 1].found)


def _read_plan(row: RawRow, file: str) -> Plan:
    fields = row.fields
    try:
        asked = RawRow(row.where, row.number, fields["question"])
        steps = tuple(PlanStep(**step) for step in fields["steps"])
        think, answer = fields["think"], fields["answer"]
        layout_of(asked)
    except (KeyError, TypeError, AttributeError) as error:
        raise row.error(f"not a plan: {error!r}", "make plans with: sleuth demonstrate, or sleuth world") from None
    return Plan(questions_from_rows([asked], "", file=file)[0], steps, think, answer)


def neutralised(plan: Plan, reserved: frozenset[str]) -> Plan:
    """``plan`` with all tags and this tokenizer's special-token strings neutralised."""

    def clean(text: str) -> str:
        return neutralise(text, reserved)

    steps = tuple(PlanStep(clean(s.think), clean(s.query), clean(s.found)) for s in plan.steps)
    return replace(plan, steps=steps, think=clean(plan.think), answer=clean(plan.answer))
