"""Labels from outcomes alone, without a judge and without gold passages.

In a right rollout a hit *helped* if an accepted answer stands in its text, or if it led there: the words that are new
in the query of a later search, up to the first that found the answer, stand in it and not in all hits of its search.
The latter shares the credit (``shared_credit``). What helped is weighed over the group of rollouts of its question:

    worth = credit * (1 + share of right rollouts that found it - share of wrong ones) / 2

so that a passage which right rollouts found and wrong ones missed counts twice as much as one that all of them found,
or as one of a group without a wrong rollout, which tells nothing. A hit that helped nowhere in the group, in which no
accepted answer is mentioned, is a hard negative, unless right rollouts found it much more often than wrong ones.
An answer that the question itself names, yes and no are no evidence (`sleuth.evidence`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from agent.labelling.config import WorthSettings
from agent.labelling.searches import Asked, Group, Label, Labeller, hits_by_text, most_found
from sleuth.evidence import contains_answer, mentions_answer, telling_answers, tokens
from sleuth.seeding import derive_seed
from sleuth.types import Hit, Passage, Trajectory

SUSPECT = 0.75
"""Worth in the group from which a hit that shows no sign of help is yet no negative."""
LED = 2 / 3
"""Share of a later query's new words that stand in a passage which led to it."""

Credits = Mapping[tuple[str, str], float]
"""Credit by (text that was asked, id of a passage that it found)."""


class Outcomes:
    """The labels of a group, by the rules above."""

    def __init__(self, settings: WorthSettings) -> None:
        self._settings = settings

    def __call__(self, group: Group, asked: Sequence[Asked]) -> list[Label]:
        answers = telling_answers(group.question)
        credit = self._credits(group, asked, answers)
        worth, found = worth_in(group), hits_by_text(asked)
        helped = {identity for _, identity in credit}
        weighed = any(group.right) and not all(group.right)

        def negative(passage: Passage) -> bool:
            suspect = weighed and worth[passage.id] >= SUSPECT
            return not suspect and passage.id not in helped and not mentions_answer(passage, answers)

        labels = []
        for (text, identity), share in credit.items():
            value = share * worth[identity]
            if value > 0 and value >= self._settings.min_worth:
                others = [pair for pair in found[text].values() if negative(pair[0])]
                negatives = most_found(others, self._settings.negatives)
                labels.append(Label(text, found[text][identity][0], value, negatives))
        return labels

    def _credits(self, group: Group, asked: Sequence[Asked], answers: Sequence[str]) -> Credits:
        credit: dict[tuple[str, str], float] = {}
        for number in (number for number, right in enumerate(group.right) if right):
            own = [one for one in asked if one.rollout == number]
            for one, hit, share in self._helpful(own, group.question.text, answers):
                key = one.text, hit.passage.id
                if hit.passage.text.strip():  # nothing is learned of a picture's title
                    credit[key] = max(share, credit.get(key, 0.0))
        return credit

    def _helpful(
        self, asked: Sequence[Asked], question: str, answers: Sequence[str]
    ) -> Iterable[tuple[Asked, Hit, float]]:
        """(query, hit, credit) of a right rollout."""
        direct = [[hit for hit in one.hits if contains_answer(hit.passage, answers)] for one in asked]
        yield from ((one, hit, 1.0) for one, hits in zip(asked, direct, strict=True) for hit in hits)
        first = next((place for place, hits in enumerate(direct) if hits), 0)  # nothing leads to a first search
        if not self._settings.shared_credit:
            return
        for place, one in enumerate(asked[:first]):
            for later in range(place + 1, first + 1):
                if asked[later].turn > one.turn:
                    known = {word for before in asked[:later] for word in tokens(before.query)} | {*tokens(question)}
                    new = set(tokens(asked[later].query)) - known
                    yield from ((one, hit, self._settings.shared_credit) for hit in _led_to(new, one.hits))


def worth_in(group: Group) -> dict[str, float]:
    """Of every passage that a rollout found: 1/2 if right and wrong ones found it alike, 1 if all right ones alone."""
    right = [_found(rollout) for rollout, good in zip(group.rollouts, group.right, strict=True) if good]
    wrong = [_found(rollout) for rollout, good in zip(group.rollouts, group.right, strict=True) if not good]
    everything = set().union(*right, *wrong)
    if not right or not wrong:
        return dict.fromkeys(everything, 0.5)
    return {name: (1 + _share(name, right) - _share(name, wrong)) / 2 for name in everything}


def at_random(settings: WorthSettings) -> Labeller:
    """As many labels as outcomes give, of the same texts and weights, with positives drawn among the hits."""
    label = Outcomes(settings)

    def draw(group: Group, asked: Sequence[Asked]) -> list[Label]:
        found = hits_by_text(asked)
        drawn = []
        for number, one in enumerate(label(group, asked)):
            hits = [passage for passage, _ in found[one.text].values()]
            seed = derive_seed("random positive", group.question.id, group.question.text, number)
            positive = random.Random(seed).choice(hits)
            others = tuple(passage for passage in hits if passage.id != positive.id)[: len(one.negatives)]
            drawn.append(replace(one, positive=positive, negatives=others))
        return drawn

    return draw


def _led_to(new: set[str], hits: Sequence[Hit]) -> list[Hit]:
    """The hits from which the ``new`` words of a later query may come; none if all of them have these words."""
    words = [{*tokens(hit.passage.title), *tokens(hit.passage.text)} for hit in hits]
    shares = [len(new & of) / len(new) for of in words] if new else []
    best = max(shares, default=0.0)
    chosen = [hit for hit, share in zip(hits, shares, strict=False) if share == best and share >= LED]
    return chosen if len(chosen) < len(hits) or len(hits) == 1 else []


def _found(rollout: Trajectory) -> set[str]:
    return {hit.passage.id for hit in rollout.hits}


def _share(name: str, rollouts: Sequence[set[str]]) -> float:
    return sum(name in found for found in rollouts) / len(rollouts)
