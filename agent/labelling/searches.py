"""The rollouts of one question, what they asked and found, and the labels that come of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sleuth.query_forms import QueryForm, last_thought, written
from sleuth.types import Hit, Image, Passage, Question, Trajectory


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one question that could be scored, and whether each answered it."""

    question: Question
    rollouts: Sequence[Trajectory]
    right: Sequence[bool]


@dataclass(frozen=True, slots=True)
class Asked:
    """One query of a rollout. ``turn`` counts the rollout's searches from 0; ``text`` is what the retriever read."""

    rollout: int
    turn: int
    query: str
    text: str
    hits: Sequence[Hit]


@dataclass(frozen=True, slots=True)
class Label:
    """A passage that was worth finding for a query, how much so (above 0, 1 at most), and hits that did not help."""

    text: str
    positive: Passage
    worth: float
    negatives: Sequence[Passage]


Labeller = Callable[[Group, Sequence[Asked]], list[Label]]


def groups_of(trajectories: Iterable[Trajectory], right: Callable[[Trajectory], bool]) -> list[Group]:
    """The rollouts by question, in order of first appearance; those that could not be scored are passed over."""
    found: dict[tuple[str, str, str], list[Trajectory]] = {}
    for trajectory in trajectories:
        if trajectory.scorable:
            question = trajectory.question
            found.setdefault((question.file, question.id, question.text), []).append(trajectory)
    return [Group(rollouts[0].question, rollouts, list(map(right, rollouts))) for rollouts in found.values()]


def asked_in(group: Group, form: QueryForm) -> list[Asked]:
    """Every query of the group with its hits, rollout by rollout in the order in which they were asked."""
    return [
        Asked(number, place, query, written(form, query, group.question.text, last_thought(turn.text)), hits)
        for number, rollout in enumerate(group.rollouts)
        for place, turn in enumerate(rollout.searches)
        for query, hits in turn.found
    ]


def hits_by_text(asked: Iterable[Asked]) -> dict[str, dict[str, tuple[Passage, int]]]:
    """Of every text that was asked, the passages that it found, by id, and how often; the best hit comes first.

    A passage that is a picture alone has no text to judge and is left out.
    """
    found: dict[str, dict[str, tuple[Passage, int]]] = {}
    for one in asked:
        known = found.setdefault(one.text, {})
        for hit in one.hits:
            if hit.passage.text.strip():
                known[hit.passage.id] = hit.passage, known.get(hit.passage.id, (hit.passage, 0))[1] + 1
    return found


def most_found(passages: Iterable[tuple[Passage, int]], count: int) -> tuple[Passage, ...]:
    """The ``count`` passages that were found most often; of equals, those that came first."""
    return tuple(passage for passage, _ in sorted(passages, key=lambda pair: -pair[1])[:count])


def to_row(label: Label, question: Question, form: QueryForm, identity: str) -> dict[str, Any]:
    """A row of Tevatron's jsonl; keys from ``weight`` on are ours."""
    return {
        "query_id": identity,
        "query": label.text,
        "positive_passages": [_passage(label.positive)],
        "negative_passages": [_passage(passage) for passage in label.negatives],
        "answers": list(question.answers),
        "weight": round(label.worth, 6),
        "query_form": form,
        "question": question.text,
        "question_file": question.file,
        "question_id": question.id,
    }


def _passage(passage: Passage) -> Mapping[str, Any]:
    return {"docid": passage.id, "title": passage.title, "text": passage.text, **_picture(passage.image)}


def _picture(image: Image | None) -> Mapping[str, Any]:
    return {} if image is None else {"image": {"name": image.name, "sha256": image.sha256}}
