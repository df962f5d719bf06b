"""Trajectories of so many turns and rollouts of them, for tests of credit by turns."""

from __future__ import annotations

from types import SimpleNamespace

from agent.learning.credit.group import GroupCredit
from agent.learning.credit.turns import TurnCredit
from agent.learning.rollouts import GroupRollouts
from sleuth.types import (
    Answer,
    Generation,
    Hit,
    Passage,
    Question,
    ScoredTrajectory,
    Search,
    Segment,
    Trajectory,
    Turn,
)

QUESTION = Question("q", "?", ("Paris", "the city"), ("France", "Seine"))
EOS = 99


def played(*lengths: int, question: Question = QUESTION, hits: tuple[tuple[str, ...], ...] = ()) -> Trajectory:
    """Searches and an answer, of so many sampled tokens, with one observed token between turns.

    ``hits``: titles that each search finds.
    """
    segments, turns = [Segment("prompt", (1, 2))], []
    for place, length in enumerate(lengths):
        last = place == len(lengths) - 1
        tokens = tuple(range(10 * place + 10, 10 * place + 10 + length))
        found = tuple(
            Hit(Passage(title, title, f"about {title}"), 1.0, rank + 1)
            for rank, title in enumerate(hits[place] if place < len(hits) else ())
        )
        action = Answer("x") if last else Search("s")
        turns.append(Turn(Generation(tokens, (-1.0,) * length, "stop"), "", action, found))
        segments.append(Segment("policy", tokens, (-1.0,) * length))
        segments += [] if last else [Segment("environment", (7,))]
    return Trajectory(question, tuple(segments), tuple(turns), "answer", {"generate": 0.0, "retrieve": 0.0})


def scored(reward: float | None, scores: tuple[float | None, ...] | None, *lengths: int) -> ScoredTrajectory:
    return ScoredTrajectory(played(*(lengths or (1,) * len(scores or (1,)))), reward, turn_scores=scores)


def a_model(values):
    """Log-probs by (length of the transcript, answer); counts what it is asked."""
    asked = []

    def answers(pairs):
        asked.extend(pairs)
        return [values[len(prefix), answer] for prefix, answer in pairs]

    answers.asked = asked
    return answers


class Playing:
    """Plays searches that find these titles, in turn."""

    codec = SimpleNamespace(eos_token_id=EOS)

    def __init__(self, found):
        self.found, self.count = found, 0

    def run(self, questions, sampling, seeds):
        out = []
        for question in questions:
            out.append(played(1, 1, question=question, hits=(self.found[self.count % len(self.found)],)))
            self.count += 1
        return out


def rollouts_of(questions, scorer, rewards, *, credit=None, oversample=1.0, read=None):
    given = iter(rewards * 20)

    class Scorer:
        def score_all(self, trajectories):
            return [ScoredTrajectory(trajectory, next(given)) for trajectory in trajectories]

    return GroupRollouts(
        questions,
        Scorer(),
        credit or TurnCredit(outcome=GroupCredit()),
        group_size=2,
        temperature=1.0,
        seed=0,
        oversample=oversample,
        turn_scorer=scorer,
        read=read,
    )
