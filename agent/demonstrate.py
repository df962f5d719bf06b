"""Demonstrations: demonstrators played through the real environment and retriever by a scripted policy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from agent.events import Event, TurnTaken
from agent.policies.scripted import ScriptedPolicy
from agent.rollout import RolloutDriver
from sleuth.demonstrator import Demonstrator, GivenUp
from sleuth.errors import DataError
from sleuth.evidence import contains_answer, has_answer, informative_answers, titles_found
from sleuth.failures import FailureLog
from sleuth.protocols import Environment, Retriever, TextCodec
from sleuth.types import Action, Answer, Hit, Invalid, Passage, Sampling, Search, Trajectory, Turn

Write = Callable[[str, Action], str]
"""A thought and an action as the text of a turn."""
_BATCH = 256
_SAID_AT_THE_END = "unknown"
"""Answer of a demonstrator that gives up; its demonstration is dropped."""


@dataclass(frozen=True, slots=True)
class Played:
    """A demonstration, and why it is not worth learning; empty if it is."""

    trajectory: Trajectory
    dropped: str = ""


@dataclass(slots=True)
class _Stage:
    """What the episodes of a batch have come to, by question id: each demonstrator sees its own turns."""

    demonstrators: dict[str, Demonstrator]
    write: Write
    turns: dict[str, list[Turn]] = field(default_factory=dict)
    given_up: dict[str, str] = field(default_factory=dict)

    def note(self, event: Event) -> None:
        if isinstance(event, TurnTaken):
            self.turns.setdefault(event.episode.rpartition("#")[0], []).append(event.turn)

    def say(self, question: str, _turn: int) -> str:
        turns = self.turns.get(question, [])
        failed = turns[-1].action if turns else None
        if isinstance(failed, Invalid):
            return self._give_up(question, f"a turn did nothing: {failed.reason}")
        move = self.demonstrators[question].act(turns)
        if isinstance(move, GivenUp):
            return self._give_up(question, move.reason)
        return self.write(move.think, move.action)

    def _give_up(self, question: str, why: str) -> str:
        self.given_up.setdefault(question, why)
        return self.write("", Answer(_SAID_AT_THE_END))


def play(
    demonstrators: Sequence[Demonstrator],
    codec: TextCodec,
    environment: Callable[[], Environment],
    retriever: Retriever | None,
    top_k: int,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    write: Write | None = None,
    end_turns: bool = False,
    why: Callable[[Trajectory], str] | None = None,
) -> list[Played]:
    """A demonstration per demonstrator, in order; its policy tokens are what the demonstrator says.

    ``write`` is how the environment's protocol writes a thought and an action, by default in tags; ``end_turns``:
    whether a search ends the policy's message with an EOS; ``why`` says why a demonstration that has come to an end is
    not worth learning, by default ``why_dropped``. Raises DataError if two demonstrators have the same question id.
    """
    by_id = {one.question.id: one for one in demonstrators}
    if len(by_id) != len(demonstrators):
        raise DataError("two demonstrations have the same question id", "make the ids in the sources unique")
    stage = _Stage(by_id, write or in_tags)
    policy = ScriptedPolicy(codec, stage.say, end_turns=end_turns)
    driver = RolloutDriver(policy, codec, environment, retriever, top_k)
    played: list[Played] = []
    failures = FailureLog()
    for start in range(0, len(demonstrators), _BATCH):
        questions = [one.question for one in demonstrators[start : start + _BATCH]]
        for trajectory in driver.run(questions, Sampling(0.0), on_event=stage.note):
            failures.note(trajectory)
            said = stage.given_up.get(trajectory.question.id) or _why_unfinished(trajectory)
            played.append(Played(trajectory, said or (why or why_dropped)(trajectory)))
        stage.turns.clear()
        if on_progress:
            on_progress(len(played), len(demonstrators))
    return played


def in_tags(think: str, action: Action) -> str:
    """The turns of a demonstration in the tag protocol."""
    if isinstance(action, Search):
        return f"<think> {think} </think>\n<search> {action.query} </search>"
    assert isinstance(action, Answer)
    return f"<think> {think} </think>\n<answer> {action.text} </answer>"


def _why_unfinished(trajectory: Trajectory) -> str:
    return "" if trajectory.stop == "answer" else f"it ended without an answer ({trajectory.stop.replace('_', ' ')})"


def why_dropped(trajectory: Trajectory, require_titles: bool = False) -> str:
    """Why a demonstration is not worth learning; empty if it is.

    A demonstrator that answers what it never read would teach guessing: the answer has to stand in what was shown,
    where a text can be evidence of it at all (of yes or no none can). ``require_titles``: the gold passages have to be
    found as well; one that stops early on purpose needs only as many as it made searches.
    """
    titles = titles_found(trajectory.question, trajectory.hits)
    if require_titles and titles.found < min(titles.wanted, len(trajectory.queries)):
        return "its supporting passages were not found"
    return "" if answer_was_read(trajectory) else "its answer does not stand in what was read"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A retriever for one run that was recorded: its searches find, one after another, what they found then."""

    observations: Sequence[Sequence[Passage]]
    fingerprint: str = "recorded"
    _next: Iterator[int] = field(default_factory=itertools.count)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        del k  # what was found then is all there is
        return [self._found(next(self._next)) for _ in queries]

    def _found(self, number: int) -> list[Hit]:
        passages = self.observations[number] if number < len(self.observations) else ()
        return [Hit(passage, 0.0, rank) for rank, passage in enumerate(passages, start=1)]


def answer_was_found(trajectory: Trajectory) -> bool:
    """Whether a passage that was shown has an accepted answer in its text; of yes or no none can be evidence."""
    shown = "\n".join(turn.observation for turn in trajectory.turns)
    accepted = informative_answers(trajectory.question.answers)
    return has_answer(shown, accepted) and any(contains_answer(hit.passage, accepted) for hit in trajectory.hits)


def answer_was_read(trajectory: Trajectory) -> bool:
    """Whether the answer given stands in what the episode has shown after its prompt."""
    return answer_stands_in(trajectory, "\n".join(turn.observation for turn in trajectory.turns))


def answer_stands_in(trajectory: Trajectory, shown: str) -> bool:
    """Whether the answer given stands in ``shown``; a right one may stand there in another form."""
    given = trajectory.answer or ""
    accepted = trajectory.question.answers
    right = any(given.casefold() == answer.casefold() for answer in accepted)
    forms = informative_answers([given, *(accepted if right else ())])
    if not informative_answers([given]):
        return True
    return has_answer(shown, forms)
