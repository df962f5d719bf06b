"""What every recipe shares: what it is given, how it asks, and the rows that come of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from agent.writing.asks import Ask, Message, Weigh
from envs.grammar import neutralise
from retrieval.passages import content_key
from retrieval.training.row import TrainingRow
from sleuth.artifacts import text_digest
from sleuth.seeding import derive_seed
from sleuth.types import Passage
from workflows.synthesis.ngrams import same_words
from workflows.synthesis.script import Script, asked
from workflows.synthesis.templates import Template

T = TypeVar("T")

_WARM = 1.0
"""Temperature of what is asked for again, where the first reply is not sampled."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What one piece of writing begins with: a passage, a row, or nothing but its number."""

    id: str
    passage: Passage | None = None
    row: TrainingRow | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """A row that was written; ``made``: how, in plain values that go into the row."""

    row: TrainingRow
    made: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reject:
    """Something that was written and is not kept, with the reason and the filter, or ``writing``.

    ``written`` is its row, ``text`` what did not become one.
    """

    id: str
    by: str
    reason: str
    text: str = ""
    written: Written | None = None


Outcome = Written | Reject


@dataclass(frozen=True, slots=True)
class Style:
    """How replies are sampled, where a step's template does not say."""

    temperature: float
    top_p: float
    attempts: int
    passage_words: int


@dataclass(frozen=True, slots=True)
class Writing:
    """One unit being written: asks with its template and seeds. Outside text cannot speak for the template.

    ``draws``: one of each of the template's choices; see `drawn`.
    """

    unit: Unit
    template: Template
    style: Style
    seed: int
    reserved: frozenset[str]
    draws: Mapping[str, str] = field(default_factory=dict)

    def rng(self, *what: int | str) -> random.Random:
        """For the choice of ``what`` for this unit, independent of its other choices; the same at every call."""
        return random.Random(derive_seed(self.seed, "choices", self.unit.id, *what))

    def drawn(self, *piece: int | str) -> Writing:
        """With one of each of the template's choices, drawn for the unit or for a ``piece`` of it."""
        return replace(self, draws=self.template.draw(lambda name: self.rng("draw", *piece, name)))

    def ask(
        self,
        step: str,
        values: Mapping[str, str],
        read: Callable[[str], T],
        *,
        place: object = "",
        after: Sequence[Message] = (),
        max_tokens: int | None = None,
        cold: bool = False,
        entire: bool = False,
    ) -> Script[T]:
        """What ``read`` makes of the reply to ``step``; ``place`` tells repetitions of a step apart.

        ``after``: what was said before, in further turns of a conversation. ``max_tokens`` None: the template's.
        ``cold``: at temperature 0, as verdicts are asked for; the attempts after the first are always sampled, as the
        same request would get the same reply. ``entire``: a reply that was cut off is none.
        """
        template = self.template.steps[step]
        messages = (*after, *self.messages(step, values))
        key = f"{self.unit.id}/{step}{place}"

        def make(attempt: int) -> Ask:
            greedy = attempt == 0 and (cold or self.style.temperature == 0)
            return Ask(
                f"{key}/{attempt}",
                messages,
                max_tokens or template.max_tokens,
                0.0 if greedy else self.style.temperature or _WARM,
                1.0 if greedy else self.style.top_p,
                tuple(template.stop),
                derive_seed(self.seed, key, attempt),
                template.form,
            )

        return asked(make, read, self.style.attempts, entire=entire)

    def messages(self, step: str, values: Mapping[str, str]) -> tuple[Message, ...]:
        """What ``step`` says, with the draws and ``values`` in its slots."""
        return self.template.steps[step].fill({**self.draws, **self._safe(values)})

    def weigh(self, step: str, values: Mapping[str, str], text: str, *, place: object = "") -> Weigh:
        """How likely ``text`` is as the reply to ``step``."""
        key = f"{self.unit.id}/{step}{place}/weight of {text}"
        return Weigh(key, self.messages(step, values), neutralise(text, self.reserved))

    def shown(self, passage: Passage) -> dict[str, str]:
        """A passage as slots: its title and the beginning of its text."""
        return {"title": passage.title or "(untitled)", "passage": first_words(passage.text, self.style.passage_words)}

    def repeats(self, text: str, passage: Passage) -> bool:
        """Whether ``text`` says ``passage`` again, whole or as far as it is shown, with or without its title."""
        bodies = (passage.text, first_words(passage.text, self.style.passage_words))
        return any(same_words(text, f"{title} {body}") for body in bodies for title in ("", passage.title))

    def written(
        self,
        number: int,
        query: str,
        positives: Sequence[Passage],
        negatives: Sequence[Passage] = (),
        instruction: str = "",
        recipe: str = "",
        answers: Sequence[str] = (),
        made: Mapping[str, object] | None = None,
    ) -> Written:
        """A row of this unit, the ``number``-th; ``made`` goes beside the draws."""
        name = f"{recipe}-{self._piece(number)}"
        row = TrainingRow(
            name, query, tuple(positives), tuple(negatives), tuple(answers), instruction, source=f"written/{recipe}"
        )
        seed = {} if self.unit.passage is None else {"seed_passage": self.unit.passage.id}
        return Written(row, {"recipe": recipe, **seed, **self.draws, **(made or {})})

    def reject(self, number: int, reason: str, text: str = "") -> Reject:
        return Reject(self._piece(number), "writing", reason, text)

    def _piece(self, number: int) -> str:
        """Always with its number: the only piece of ``q-1`` is not the second of ``q``."""
        return f"{self.unit.id}-{number}"

    def _safe(self, values: Mapping[str, str]) -> dict[str, str]:
        return {name: neutralise(text, self.reserved) for name, text in values.items()}


class Recipe(Protocol):
    """A published way to write rows."""

    steps: Mapping[str, Sequence[str]]
    """The steps of the template that are asked for by its settings, with the slots of each (see `load_template`)."""

    def write(self, writing: Writing) -> Script[list[Outcome]]: ...


def language_slot(languages: Sequence[str]) -> str:
    """The slot of the language, which a template may leave out where everything is English."""
    return "language?" if list(languages) == ["English"] else "language"


def first_words(text: str, count: int) -> str:
    words = text.split()
    return text.strip() if len(words) <= count else " ".join(words[:count]) + " …"


def written_passage(text: str, title: str = "") -> Passage:
    """A passage that is in no corpus; its id follows from its content, so that copies of it are the same."""
    passage = Passage("", title, text)
    return Passage(f"written-{text_digest(content_key(passage))[:16]}", title, text)


def is_written(passage: Passage) -> bool:
    """Whether it is a `written_passage`."""
    return passage.id == written_passage(passage.text, passage.title).id
