"""The agent's searches as training data for the retriever.

Every passage found by a search is labelled:

- *positive*: it is a gold passage of the question, by id or by title, or, in a rewarded trajectory, its text contains
  an accepted answer (yes and no do not count: they occur in too many texts);
- *left out*: it contains an accepted answer, but only in its title or in a trajectory that was not rewarded, so its
  relevance is unknown;
- *negative*: any other passage.

The same query asked for the same question of the same file by several trajectories becomes one row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sleuth.evidence import contains_answer, golds_of, mentions_answer
from sleuth.types import Passage, Question, ScoredTrajectory

Mark = Literal["positive", "negative", "unknown"]


@dataclass(slots=True)
class AskedQuery:
    """One query of one question, the passages it found, and the rewards of the trajectories that asked it.

    A passage that is positive in one of these trajectories is not a negative.
    """

    question: Question
    query: str
    positives: dict[str, Passage] = field(default_factory=dict)
    negatives: dict[str, Passage] = field(default_factory=dict)
    unknown: dict[str, Passage] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)

    def to_row(self, identity: str) -> dict[str, Any]:
        """A row of Tevatron's jsonl; ``question_file``, ``question_id``, ``asked`` and ``reward`` (mean) are ours."""
        negatives = [p for i, p in self.negatives.items() if i not in self.positives and i not in self.unknown]
        return {
            "query_id": identity,
            "query": self.query,
            "positive_passages": [_passage(p) for p in self.positives.values()],
            "negative_passages": [_passage(p) for p in negatives],
            "answers": list(self.question.answers),
            "question_file": self.question.file,
            "question_id": self.question.id,
            "asked": len(self.rewards),
            "reward": sum(self.rewards) / len(self.rewards),
        }


def asked_queries(trajectories: Iterable[ScoredTrajectory], rewarded_from: float) -> list[AskedQuery]:
    """Every distinct (question file, question, query), in order of first appearance.

    Question ids are unique within a file only. Trajectories that do not name it are told apart by the whole question.
    ``rewarded_from``: the lowest reward that counts as rewarded. Trajectories that could not be scored are passed over.
    """
    found: dict[tuple[str, Question, str], AskedQuery] = {}
    for scored in trajectories:
        if scored.reward is None or not scored.trajectory.scorable:
            continue
        question = scored.trajectory.question
        for query, hits in (searched for turn in scored.trajectory.searches for searched in turn.found):
            key = (question.file, question, query)
            asked = found.setdefault(key, AskedQuery(question, query))
            asked.rewards.append(scored.reward)
            for hit in hits:
                if hit.passage.text.strip():
                    mark = judge(question, hit.passage, rewarded=scored.reward >= rewarded_from)
                    _place(asked, mark)[hit.passage.id] = hit.passage
    return list(found.values())


def judge(question: Question, passage: Passage, *, rewarded: bool) -> Mark:
    """The label of a found passage, by the rules above."""
    if golds_of(question).of(passage) is not None:
        return "positive"
    if rewarded and contains_answer(passage, question.answers):
        return "positive"
    return "unknown" if mentions_answer(passage, question.answers) else "negative"


def _place(asked: AskedQuery, mark: Mark) -> dict[str, Passage]:
    return {"positive": asked.positives, "negative": asked.negatives, "unknown": asked.unknown}[mark]


def _passage(passage: Passage) -> Mapping[str, Any]:
    image = {} if passage.image is None else {"image": {"name": passage.image.name, "sha256": passage.image.sha256}}
    return {"docid": passage.id, "title": passage.title, "text": passage.text, **image}
