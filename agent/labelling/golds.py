"""Labels by the gold passages of questions: the rules of `agent.retriever_rows`."""

from __future__ import annotations

from collections.abc import Sequence

from agent.labelling.config import GoldSettings
from agent.labelling.searches import Asked, Group, Label, hits_by_text, most_found
from agent.retriever_rows import judge
from sleuth.types import Passage


class ByGolds:
    """A hit is positive if it is a gold passage, or has the answer in a right rollout; all are worth the same."""

    def __init__(self, settings: GoldSettings) -> None:
        self._settings = settings

    def __call__(self, group: Group, asked: Sequence[Asked]) -> list[Label]:
        right = {one.text for one in asked if group.right[one.rollout]}
        labels: list[Label] = []
        for text, found in hits_by_text(asked).items():
            marks = {name: judge(group.question, p, rewarded=text in right) for name, (p, _) in found.items()}
            negatives = most_found(
                (pair for name, pair in found.items() if marks[name] == "negative"), self._settings.negatives
            )
            positives: list[Passage] = [found[name][0] for name, mark in marks.items() if mark == "positive"]
            labels += [Label(text, positive, 1.0, negatives) for positive in positives]
        return labels
