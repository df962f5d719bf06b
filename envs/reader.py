"""A demonstrator that only reads: passages are given with the question, and it answers from them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from envs.readings import Readings
from envs.searcher import answered, quoted
from envs.solutions import Solution
from sleuth.demonstrator import GivenUp, Move
from sleuth.evidence import contains_answer, golds_of, informative_answers
from sleuth.types import Hit, Question, Turn


@dataclass(frozen=True, slots=True)
class Reader:
    """Plays a solution from the passages ``given``, as a searcher would once it has found them.

    ``reserved``: strings of the policy's tokenizer, broken like the protocol's tags where data has them.
    """

    solution: Solution
    given: tuple[Hit, ...]
    reserved: frozenset[str] = frozenset()

    @property
    def question(self) -> Question:
        return self.solution.question

    def act(self, turns: Sequence[Turn]) -> Move | GivenUp:
        del turns
        now = Readings.of_hits(self.solution, self.given)
        if len(now.met) < len(self.solution.needs):
            return GivenUp("what was given does not have the answer")
        return answered(self.solution, now, quoted(now.met), self.reserved)


def with_gold(question: Question, hits: Sequence[Hit], k: int, seed: int) -> tuple[Hit, ...]:
    """``k`` of ``hits``: the best gold one that has an answer, at a seeded rank, and the best of the others.

    Empty if no hit is gold and has an answer; where none can be evidence, as of yes and no, any gold one will do.
    """
    golds, telling = golds_of(question), bool(informative_answers(question.answers))
    good = [h for h in hits if golds.of(h.passage) and (not telling or contains_answer(h.passage, question.answers))]
    if not good:
        return ()
    others = [hit for hit in hits if hit is not good[0]][: k - 1]
    others.insert(random.Random(f"{seed}/{question.id}").randint(0, len(others)), good[0])
    return tuple(Hit(hit.passage, hit.score, rank) for rank, hit in enumerate(others, start=1))
