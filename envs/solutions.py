"""How a question is answered, as its data set tells it: what has to be found, in which passages.

One search and one passage (any data set with gold passages), solved steps (MuSiQue), or several passages that name each
other or are compared (HotpotQA, 2WikiMultihopQA). Read from the official releases and from FlashRAG rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from envs.queries import bare
from envs.questions import questions_from_rows, supporting_facts
from sleuth.errors import DataError
from sleuth.evidence import informative_answers, normalise_title
from sleuth.rows import RawRow, name_of, read_rows
from sleuth.types import Question


@dataclass(frozen=True, slots=True)
class Need:
    """One thing to be found.

    ``ask``: a question for it, ``#1`` standing for what the first need has found; empty: it is asked for by ``title``,
    that of its passage. ``golds``: ids or normalised titles of the passages that may have it; empty: any may.
    ``values``: what it is, in any of these forms; empty: to have read the passage is enough. ``hints``: texts of which
    one, where the passage has it, says what matters there.
    """

    ask: str = ""
    title: str = ""
    golds: frozenset[str] = frozenset()
    values: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Solution:
    """A question and all that its answer needs. ``in_order``: each need comes after those before it."""

    question: Question
    needs: tuple[Need, ...]
    in_order: bool = True

    @property
    def compares(self) -> bool:
        return "comparison" in self.question.kind


def read_solutions(
    source: str | Path, limit: int | None = None, *, any_passage: bool = False, by_title: bool = False
) -> list[Solution]:
    """A solution for each question of a HotpotQA, 2WikiMultihopQA, MuSiQue or FlashRAG file that names its gold
    passages.

    ``by_title``: they are known by their titles even where their ids are given. ``any_passage``: whatever passage has
    a value that is looked for will do, so that questions without golds have a solution too, one search. Raises
    DataError if there is none.
    """
    rows = read_rows(source, limit)
    questions = questions_from_rows(rows, name_of(source), file=str(source))
    if by_title:
        questions = [replace(question, gold_ids=()) for question in questions]
    solutions = [_solution(row, question) for row, question in zip(rows, questions, strict=True)]
    if any_passage:
        return [s if not s.in_order else replace(s, needs=tuple(map(_anywhere, s.needs))) for s in solutions]
    named = [s for s in solutions if s.question.gold_ids or s.question.supporting_titles]
    if not named:
        raise DataError(
            f"no question of {source} names its supporting passages",
            "demonstrations need gold_ids or supporting_titles, or demonstrations.require_titles=false",
        )
    return named


def _solution(row: RawRow, question: Question) -> Solution:
    titles, golds = question.supporting_titles, question.gold_ids
    several = len(golds or titles) > 1 and not question.alternatives
    if question.steps and several:
        return Solution(question, _solved(question))
    if several and len(titles) > 1:
        return Solution(question, _titled(row, question), in_order=False)
    title = titles[0] if titles and not several else ""
    return Solution(question, (Need(question.text, title, _names(question), question.answers),))


def _anywhere(need: Need) -> Need:
    return replace(need, golds=frozenset()) if informative_answers(need.values) else need


def _names(question: Question) -> frozenset[str]:
    return frozenset(question.gold_ids or map(normalise_title, question.supporting_titles))


def _solved(question: Question) -> tuple[Need, ...]:
    """A need a step. Where there are as many gold passages as steps, they are in the order of the steps."""
    names = question.gold_ids or tuple(map(normalise_title, question.supporting_titles))
    paired = len(names) == len(question.steps)
    titled = len(question.supporting_titles) == len(question.steps)
    needs = []
    for i, step in enumerate(question.steps):
        last = i + 1 == len(question.steps)
        needs.append(
            Need(
                " ".join(step.question.replace(">>", " ").split()).rstrip(" ?"),
                question.supporting_titles[i] if titled else "",
                frozenset(names[i : i + 1] if paired else names),
                tuple(dict.fromkeys((step.answer, *(question.answers if last else ())))),
            )
        )
    return tuple(needs)


def _titled(row: RawRow, question: Question) -> tuple[Need, ...]:
    """A need a gold title, with the supporting sentences and the facts that the data set gives of it as hints."""
    titles = question.supporting_titles
    paired = len(question.gold_ids) == len(titles)
    sentences, facts = _supporting_sentences(row), _evidences(row)
    return tuple(
        Need(
            title=title,
            golds=frozenset(question.gold_ids[i : i + 1] if paired else [normalise_title(title)]),
            hints=(*_facts(facts, title), *sentences.get(title, ())),
        )
        for i, title in enumerate(titles)
    )


def _facts(facts: Mapping[str, Sequence[str]], title: str) -> Sequence[str]:
    """Facts name their subject with or without the brackets of a title."""
    return facts.get(normalise_title(title)) or facts.get(normalise_title(bare(title)), ())


def _supporting_sentences(row: RawRow) -> dict[str, list[str]]:
    context = _context(row)
    found: dict[str, list[str]] = {}
    for title, number in supporting_facts(row, row.fields):
        found.setdefault(title, []).extend(context.get(title, [])[number : number + 1] if number >= 0 else [])
    return found


def _context(row: RawRow) -> dict[str, list[str]]:
    context = row.fields.get("context") or []
    try:
        if isinstance(context, Mapping):
            context = zip(context["title"], context["sentences"], strict=True)
        return {title: [sentence.strip() for sentence in sentences] for title, sentences in context}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise row.error("broken 'context'", "it must be a list of [title, [sentence, ...]]") from None


def _evidences(row: RawRow) -> dict[str, list[str]]:
    """2WikiMultihopQA's facts, [subject, relation, object]: the objects by subject."""
    metadata = row.fields.get("metadata")
    given: Any = row.fields.get("evidences") or (metadata.get("evidences") if isinstance(metadata, Mapping) else None)
    found: dict[str, list[str]] = {}
    for fact in given or ():
        if not isinstance(fact, Sequence) or len(fact) != 3 or not all(isinstance(part, str) for part in fact):
            raise row.error("broken 'evidences'", "it must be a list of [subject, relation, object]")
        found.setdefault(normalise_title(fact[0]), []).append(fact[2])
    return found
