"""What the agent asked, as training data for the retriever.

The rule, for every search that was carried out, and for every passage that it found:

- *positive*: its title is one that the question names as supporting, or, in a trajectory that was rewarded, its text
  holds an accepted answer (yes and no, which are in too many texts to tell anything, do not count);
- *left out*: it holds an accepted answer, but in its title alone, or the trajectory was not rewarded: nobody knows
  what it is worth;
- *negative*: any other passage. It was found for this query and helped nobody.

The same query asked for the same question of the same file by several trajectories becomes one row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sleuth.evidence import contains_answer, mentions_answer, normalise_title, supporting_titles
from sleuth.types import Passage, Question, ScoredTrajectory, Search

Mark = Literal["positive", "negative", "unknown"]


@dataclass(slots=True)
class AskedQuery:
    """One query of one question: what it found, and what became of the trajectories that asked it.

    ``rewards`` are those of all these trajectories. A passage that is positive in one of them is no negative.
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
        for turn in scored.trajectory.searches:
            assert isinstance(turn.action, Search)
            key = (question.file, question, turn.action.query)
            asked = found.setdefault(key, AskedQuery(question, turn.action.query))
            asked.rewards.append(scored.reward)
            for hit in turn.hits:
                if hit.passage.text.strip():
                    mark = judge(question, hit.passage, rewarded=scored.reward >= rewarded_from)
                    _place(asked, mark)[hit.passage.id] = hit.passage
    return list(found.values())


def judge(question: Question, passage: Passage, *, rewarded: bool) -> Mark:
    """What a found passage is worth, by the rule above."""
    if normalise_title(passage.title) in supporting_titles(question):
        return "positive"
    if rewarded and contains_answer(passage, question.answers):
        return "positive"
    return "unknown" if mentions_answer(passage, question.answers) else "negative"


def _place(asked: AskedQuery, mark: Mark) -> dict[str, Passage]:
    return {"positive": asked.positives, "negative": asked.negatives, "unknown": asked.unknown}[mark]


def _passage(passage: Passage) -> Mapping[str, str]:
    return {"docid": passage.id, "title": passage.title, "text": passage.text}
