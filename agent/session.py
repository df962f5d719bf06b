"""An interactive session: its questions, their results, and the settings a user changes in between. No terminal here.

An interrupted question leaves no trajectory, but the session continues: the driver has released its episode, and
events that still arrive from another thread are dropped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.events import Event
from agent.rollout import RolloutDriver
from agent.tools import ToolBox
from sleuth.errors import ConfigError, DataError, RetrieverError
from sleuth.failures import FailureLog
from sleuth.protocols import Environment, Policy, Retriever, TextCodec
from sleuth.query_forms import QueryForm, form_of
from sleuth.trajectories import TrajectoryWriter, read_trajectories
from sleuth.types import Hit, Question, Sampling, ScoredTrajectory, Trajectory

SEARCHING = ("search", "rag")
OnEvent = Callable[[Event], None]
Metric = Callable[[str | None, Sequence[str]], float]
"""(prediction, accepted answers) -> value; a missing prediction is None."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """Settings that may change between questions. ``seed`` is the next question's; it grows by 1 per question."""

    mode: str = "search"
    top_k: int = 3
    temperature: float = 0.0
    turns: int = 6
    searches: int = 4
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Tools:
    """Functions of packages that this one may not import.

    ``environment`` raises ConfigError for inconsistent knobs; ``retriever`` opens the retriever named by its argument;
    ``questions`` reads a data set; ``box`` makes the policy's tools besides search over a retriever.
    """

    environment: Callable[[Knobs], Callable[[], Environment]]
    retriever: Callable[[str], Retriever]
    questions: Callable[[str], Sequence[Question]]
    metrics: Mapping[str, Metric]
    box: Callable[[Knobs, Retriever | None], ToolBox | None] = lambda _knobs, _retriever: None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question that was played to its end, with its knobs and its grade.

    ``failure`` says why the retriever or the environment failed, if it did.
    """

    trajectory: Trajectory
    knobs: Knobs
    retriever: str | None
    failure: str = ""
    grades: Mapping[str, float] = field(default_factory=dict)

    @property
    def scored(self) -> ScoredTrajectory:
        """As it is saved: the reward is exact match, None if the right answer is unknown."""
        return ScoredTrajectory(self.trajectory, self.grades.get("em"), dict(self.grades))


@dataclass(slots=True)
class _Asked:
    """The last question asked, answered or not."""

    question: Question
    knobs: Knobs
    answered: Exchange | None = None


class Session:
    """Asks a policy questions, one at a time. ``source`` is the data set that ``load`` reads by default."""

    def __init__(
        self,
        policy: Policy,
        codec: TextCodec,
        tools: Tools,
        knobs: Knobs,
        retriever: str | None = None,
        source: str | None = None,
    ) -> None:
        self.knobs = knobs
        self.history: list[Exchange] = []
        self._policy = policy
        self._codec = codec
        self._tools = tools
        self._opened: dict[str, Retriever] = {}
        self._boxes: dict[tuple[str, str | None], ToolBox | None] = {}
        self._source = source
        self._sets: dict[str, Sequence[Question]] = {}
        self._next = 0
        self._serial = itertools.count(1)
        self._asked: _Asked | None = None
        self._failures = FailureLog()
        self.retriever = retriever
        self.change()
        if retriever is not None and _searches(knobs):
            self._box(knobs, retriever)

    # Knobs

    def change(self, **values: object) -> Knobs:
        """Change some knobs, or none if they are inconsistent. Lowering turns below searches also lowers searches."""
        knobs = replace(self.knobs, **values)  # type: ignore[arg-type]
        if not (math.isfinite(knobs.temperature) and knobs.temperature >= 0):
            raise ConfigError(f"temperature is {knobs.temperature}", "0 is greedy, 1 the policy's own distribution")
        if "turns" in values and knobs.mode == "search":
            knobs = replace(knobs, searches=max(0, min(knobs.searches, knobs.turns - 1)))
        self._tools.environment(knobs)
        self.knobs = knobs
        return knobs

    def use_retriever(self, name: str) -> None:
        """Search ``name`` from now on; if it cannot be opened, nothing changes."""
        self._open(name)
        self.retriever = name

    # Questions

    def ask(self, text: str, on_event: OnEvent | None = None) -> Exchange:
        """Play a question typed by the user."""
        if not text.strip():
            raise DataError("the question is empty")
        return self.put(Question(f"asked-{next(self._serial)}", text.strip(), ()), on_event)

    def put(self, question: Question, on_event: OnEvent | None = None) -> Exchange:
        """Play ``question``; graded immediately if its answers are known."""
        knobs = self.knobs
        self._ready(knobs, self.retriever)
        self._asked = _Asked(question, knobs)
        self.knobs = replace(knobs, seed=knobs.seed + 1)
        return self._play(self._asked, knobs, self.retriever, on_event)

    def again(self, retriever: str | None = None, on_event: OnEvent | None = None) -> tuple[Exchange | None, Exchange]:
        """Play the last question again, with the current knobs but its own seed: (previous result, new result).

        ``retriever`` is used this time only. The previous result is None if the question was interrupted.
        """
        if self._asked is None:
            raise ConfigError("nothing was asked yet", "ask a question first")
        name = retriever or self.retriever
        knobs = replace(self.knobs, seed=self._asked.knobs.seed)
        self._ready(knobs, name)
        before = self._asked.answered
        return before, self._play(self._asked, knobs, name, on_event)

    def load(self, source: str | None = None, which: str | None = None) -> Question:
        """A question of a data set: by position from 1, by id, or the next one. ``source`` becomes the default."""
        name = source or self._source
        if name is None:
            raise ConfigError("no data set is named", "/load FILE")
        if name not in self._sets:
            self._sets[name] = self._tools.questions(name)
        questions = self._sets[name]
        position = self._next if which is None and name == self._source else 0
        if which is not None:
            position = _position(questions, which, name)
        if position >= len(questions):
            raise DataError(f"{name} has no question after its {len(questions)}", "/load FILE 1 begins again")
        self._source, self._next = name, position + 1
        return questions[position]

    # The last answer

    @property
    def last(self) -> Exchange:
        """The last question that was played to its end. Raises ConfigError if there is none."""
        if not self.history:
            raise ConfigError("no question was answered yet", "ask one first")
        return self.history[-1]

    def passage(self, number: int) -> Hit:
        """The ``number``-th passage of the last answer, counted from 1 over all its searches."""
        hits = self.last.trajectory.hits
        if not 1 <= number <= len(hits):
            known = f"1 to {len(hits)}" if hits else "it found none"
            raise ConfigError(f"the last answer has no passage {number}", known)
        return hits[number - 1]

    def grade(self, answers: Sequence[str]) -> Exchange:
        """Compare the last answer with ``answers``, any of which is right; they are stored with its question."""
        accepted = tuple(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))
        if not accepted:
            raise ConfigError("no answer is given to grade against", "/grade Oslo | Kristiania")
        last = self.last
        question = replace(last.trajectory.question, answers=accepted)
        graded = self._graded(replace(last, trajectory=replace(last.trajectory, question=question)))
        self.history[-1] = graded
        if self._asked is not None and self._asked.answered is last:
            self._asked = _Asked(question, self._asked.knobs, graded)
        return graded

    def save(self, path: str | Path, everything: bool = False) -> int:
        """Append the last trajectory, or all of the session's, to a jsonl file; returns their number."""
        target = Path(path)
        if target.suffix != ".jsonl":
            raise ConfigError(f"{path} is no .jsonl file", "trajectories are saved as JSON lines")
        rows = self.history if everything else [self.last]
        if not rows:
            raise ConfigError("no question was answered yet", "ask one first")
        if target.exists() and target.stat().st_size:
            next(iter(read_trajectories(target)), None)  # refuses to append to a file with other content
        with TrajectoryWriter(target) as writer:
            for exchange in rows:
                writer.write(exchange.scored)
        return len(rows)

    # Internals

    def _ready(self, knobs: Knobs, name: str | None) -> None:
        """Check that a question can be played, before the session changes."""
        self._tools.environment(knobs)
        if name is not None and _searches(knobs):
            self._box(knobs, name)
        elif knobs.mode in SEARCHING:
            raise ConfigError(f"mode {knobs.mode} needs something to search", "/retriever INDEX, or /mode direct")

    def _play(self, asked: _Asked, knobs: Knobs, name: str | None, on_event: OnEvent | None) -> Exchange:
        opened = self._open(name) if name is not None and _searches(knobs) else None
        overheard = _Overheard(opened) if opened is not None else None
        environment, box = self._tools.environment(knobs), self._box(knobs, name if opened is not None else None)
        driver = RolloutDriver(self._policy, self._codec, environment, overheard, knobs.top_k, box)
        gate = _Gate(on_event)
        try:
            (trajectory,) = driver.run([asked.question], Sampling(knobs.temperature), [knobs.seed], gate.pass_on)
        finally:
            gate.close()
        failure = ""
        if not trajectory.scorable:
            if trajectory.failure and trajectory.failure.trace:  # the rest is shown by whoever asked
                self._failures.note(trajectory)
            failure = overheard.failure if overheard else ""
            failure = failure or (trajectory.failure.error if trajectory.failure else "")
        exchange = self._graded(Exchange(trajectory, knobs, name if overheard else None, failure))
        asked.answered = exchange
        self.history.append(exchange)
        return exchange

    def _graded(self, exchange: Exchange) -> Exchange:
        trajectory = exchange.trajectory
        answers = trajectory.question.answers
        if not answers or not trajectory.scorable:
            return exchange
        grades = {name: metric(trajectory.answer, answers) for name, metric in self._tools.metrics.items()}
        return replace(exchange, grades=grades)

    def _box(self, knobs: Knobs, name: str | None) -> ToolBox | None:
        """The tools over the retriever ``name``: made once, since one may be slow to make."""
        key = (knobs.mode, name)
        if key not in self._boxes:
            self._boxes[key] = self._tools.box(knobs, None if name is None else self._open(name))
        return self._boxes[key]

    def _open(self, name: str) -> Retriever:
        if name not in self._opened:
            self._opened[name] = self._tools.retriever(name)
        return self._opened[name]


class _Overheard:
    """A retriever that remembers why it failed; the driver does not report it."""

    def __init__(self, inner: Retriever) -> None:
        self._inner = inner
        self.failure = ""

    @property
    def fingerprint(self) -> str:
        return self._inner.fingerprint

    @property
    def query_form(self) -> QueryForm:
        return form_of(self._inner)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        try:
            return self._inner.search(queries, k)
        except RetrieverError as error:
            self.failure = str(error)
            raise


class _Gate:
    """Passes events on until it is closed."""

    def __init__(self, on_event: OnEvent | None) -> None:
        self._on_event = on_event

    def pass_on(self, event: Event) -> None:
        on_event = self._on_event
        if on_event is not None:
            on_event(event)

    def close(self) -> None:
        self._on_event = None


def _searches(knobs: Knobs) -> bool:
    return knobs.mode not in ("direct", "cot")


def _position(questions: Sequence[Question], which: str, name: str) -> int:
    """Index of the question with that id, or else at that position, counted from 1."""
    for index, question in enumerate(questions):
        if question.id == which:
            return index
    if not which.isdecimal():
        raise DataError(f"{name} has no question with the id '{which}'", f"ids are like '{questions[0].id}'")
    if not 1 <= int(which) <= len(questions):
        raise DataError(f"{name} has no question {which}", f"1 to {len(questions)}")
    return int(which) - 1
