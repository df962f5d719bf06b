"""Demonstration plans: read from and written to jsonl, and derived from questions with known supporting passages.

A plan says what a good searcher would think and type; it is replayed with the real environment and
retriever, which determine what is found. On disk: one JSON object per line, the question as a FlashRAG row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from envs.grammar import neutralise
from envs.questions import distant, layout_of, musique_support, questions_from_rows, supporting_facts
from sleuth.errors import DataError
from sleuth.rows import RawRow, name_of, read_rows
from sleuth.types import Plan, PlanStep, Question

_CLUE_WORDS = 24
_REFERENCE = re.compile(r"#(\d+)")


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


def plans_from_release(source: str | Path, limit: int | None = None) -> list[Plan]:
    """A plan for each question with supporting passages in a HotpotQA, 2WikiMultihopQA, MuSiQue or FlashRAG file.

    HotpotQA: one search per supporting title, in the order in which the question leads to them. MuSiQue: one
    search per sub-question, with references to earlier answers filled in. Questions without supporting passages
    are left out; raises DataError if that is all of them.
    """
    rows = read_rows(source, limit)
    questions = questions_from_rows(rows, name_of(source), file=str(source))
    make = _from_sub_questions if layout_of(rows[0]) == "musique" else _from_titles
    plans = [plan for row, question in zip(rows, questions, strict=True) if (plan := make(row, question))]
    if not plans:
        raise DataError(
            f"no question of {source} names its supporting passages",
            "plans need HotpotQA, MuSiQue, 2WikiMultihopQA or FlashRAG rows with supporting_titles",
        )
    return plans


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


def _plan(question: Question, steps: Iterable[PlanStep], think: str) -> Plan:
    """The plan with any tags that came in with the data neutralised, so that no turn can be forged."""
    safe = tuple(PlanStep(neutralise(s.think), neutralise(s.query), s.found) for s in steps)
    return Plan(question, safe, neutralise(think), neutralise(question.answers[0]))


# --- one search per supporting title ---


def _from_titles(row: RawRow, question: Question) -> Plan | None:
    if not question.supporting_titles:
        return None
    context, support = _context(row), supporting_facts(row, row.fields)
    titles = _in_order(question, {title: " ".join(sentences) for title, sentences in context.items()})
    steps: list[PlanStep] = []
    known = ""
    for i, title in enumerate(titles):
        need = _need(question, titles, i)
        sentences = [context[t][n] for t, n in support if t == title and 0 <= n < len(context.get(t, ()))]
        clue = _clue(sentences, _bare(titles[i + 1]) if i + 1 < len(titles) else question.answers[0])
        steps.append(PlanStep(f"{known} {need}".strip(), _typed(title), clue))
        known = clue or f"Now I know {title}."
    return _plan(question, steps, f"{known} So the answer is {question.answers[0]}.")


def _need(question: Question, titles: Sequence[str], i: int) -> str:
    if i:
        return f"Next I look up {titles[i]}."
    if question.kind == "comparison" and len(titles) > 1:
        return f"I have to compare {' and '.join(titles)}. First I look up {titles[0]}."
    return f"The question starts from {titles[0]}."


def _in_order(question: Question, texts: Mapping[str, str]) -> list[str]:
    """Titles in the order in which a searcher finds them.

    Those that the question mentions come first, in the order of mention. In a bridge question the others follow
    from earlier passages: a passage that mentions another title precedes it, one that contains the answer is last.
    """
    titles = list(question.supporting_titles)
    asked = question.text.casefold()
    answer = question.answers[0].casefold()

    def key(title: str) -> tuple[float, int, int]:
        mentioned = asked.find(_bare(title).casefold())
        text = texts.get(title, "").casefold()
        leads = any(_bare(other).casefold() in text for other in titles if other != title)
        order = mentioned if question.kind == "comparison" else 0
        return (order if mentioned >= 0 else float("inf"), int(answer in text), int(not leads))

    return sorted(titles, key=key)


def _context(row: RawRow) -> dict[str, list[str]]:
    context = row.fields.get("context") or []
    try:
        if isinstance(context, Mapping):
            context = zip(context["title"], context["sentences"], strict=True)
        return {title: [sentence.strip() for sentence in sentences] for title, sentences in context}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise row.error("broken 'context'", "it must be a list of [title, [sentence, ...]]") from None


def _clue(sentences: Sequence[str], wanted: str) -> str:
    """The supporting sentence that contains ``wanted``, else the first one; cut to a few words around it."""
    sentence = next((s for s in sentences if wanted.casefold() in s.casefold()), sentences[0] if sentences else "")
    words = sentence.split()
    if len(words) <= _CLUE_WORDS:
        return " ".join(words)
    before = len(sentence[: max(sentence.casefold().find(wanted.casefold()), 0)].split())
    start = max(0, min(before + len(wanted.split()) + 1 - _CLUE_WORDS, len(words) - _CLUE_WORDS))
    end = start + _CLUE_WORDS
    shown = " ".join(words[start:end]).rstrip(",;:")
    return ("... " if start else "") + shown + (" ..." if end < len(words) else "")


def _bare(title: str) -> str:
    """The title without the bracketed part that disambiguates it."""
    return re.sub(r"\s*\([^)]*\)$", "", title) or title


def _typed(title: str) -> str:
    """The title as typed into a search box: without the brackets, but with the text inside them."""
    return " ".join(re.sub(r"[()\[\]]", " ", title).split()) or title


# --- one search per sub-question ---


def _from_sub_questions(row: RawRow, question: Question) -> Plan | None:
    decomposition = row.fields.get("question_decomposition") or []
    if not decomposition or not musique_support(row):
        return None
    steps: list[PlanStep] = []
    answers: list[str] = []
    known = ""
    for part in decomposition:
        asked, found = _sub_question(row, part, answers)
        steps.append(PlanStep(f"{known} I need to know: {asked}".strip(), asked.rstrip(" ?"), found))
        answers.append(found)
        known = f"That is {found}."
    return _plan(question, steps, f"{known} So the answer is {question.answers[0]}.")


def _sub_question(row: RawRow, part: Any, answers: Sequence[str]) -> tuple[str, str]:
    """A sub-question with earlier answers in place of #1, #2, ..., and its own answer."""
    try:
        asked = _REFERENCE.sub(lambda m: _referred(m, answers), part["question"])
        found = str(part["answer"])
    except (KeyError, TypeError):
        raise row.error("broken 'question_decomposition'") from None
    return " ".join(asked.replace(">>", " ").split()).replace(" ?", "?"), found


def _referred(match: re.Match[str], answers: Sequence[str]) -> str:
    """The earlier answer that #N refers to; any other number is literal text ("the #1 hit")."""
    number = int(match[1])
    return answers[number - 1] if 1 <= number <= len(answers) else match[0]


def neutralised(plan: Plan, reserved: frozenset[str]) -> Plan:
    """``plan`` with all tags and this tokenizer's special-token strings neutralised."""

    def clean(text: str) -> str:
        return neutralise(text, reserved)

    steps = tuple(PlanStep(clean(s.think), clean(s.query), clean(s.found)) for s in plan.steps)
    return replace(plan, steps=steps, think=clean(plan.think), answer=clean(plan.answer))
