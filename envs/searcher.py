"""A demonstrator that searches as a policy could: it looks for what the solution needs, in words that it has read.

It knows the solution, but says nothing that the episode does not show: the content words of its queries stand in the
question or in passages shown before, its thoughts quote passages, and it answers only what it has read. Where a query
fails it tries others; where none is left it gives up, and the demonstration is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from envs.grammar import neutralise
from envs.queries import bare, content_words, is_known, keywords, names, only_known
from envs.readings import Met, Readings
from envs.solutions import Need, Solution
from sleuth.demonstrator import GivenUp, Move
from sleuth.evidence import has_answer, informative_answers
from sleuth.types import Answer, Question, Search, Turn

_REFERENCE = re.compile(r"#(\d+)")
_LOOK_UP = "I have to look this up."
_RETRY = "That does not say it. I try other words."

Thought = tuple[str, str]
"""A query, and the thought that leads to it."""


@dataclass(frozen=True, slots=True)
class Searcher:
    """Plays a solution. ``stop_after``: once so many needs are met it answers with what the last of them has found.

    ``reserved``: strings of the policy's tokenizer, broken like the protocol's tags where data has them.
    """

    solution: Solution
    stop_after: int | None = None
    reserved: frozenset[str] = frozenset()

    @property
    def question(self) -> Question:
        return self.solution.question

    @property
    def hops(self) -> int:
        """How many things there are to be found."""
        return len(self.solution.needs)

    def lazily(self, hops: int) -> Searcher:
        return replace(self, stop_after=hops)

    def act(self, turns: Sequence[Turn]) -> Move | GivenUp:
        now = Readings.of(self.solution, turns)
        news = now.met[len(Readings.of(self.solution, turns[:-1]).met) if turns else 0 :]
        said = quoted(news)
        if len(now.met) == self.hops or len(now.met) == self.stop_after:
            return answered(self.solution, now, said, self.reserved)
        searches = [turn.action for turn in turns if isinstance(turn.action, Search)]
        used = {content_words(query) for search in searches for query in search.queries}
        for query, need in _candidates(self.solution, now):
            if query and content_words(query) not in used:
                think = _RETRY if turns and not news else need
                return Move(self._safe(f"{said} {think}"), Search(self._safe(query)))
        return GivenUp("what it looked for was not found")

    def _safe(self, text: str) -> str:
        return _safe(text, self.reserved)


def quoted(met: Sequence[Met]) -> str:
    """What passages say of the needs that they meet, each once, for a thought."""
    return " ".join(dict.fromkeys(one.clue for one in met if one.clue))


def answered(solution: Solution, now: Readings, said: str, reserved: frozenset[str]) -> Move | GivenUp:
    """The last move, after the thought ``said``: the answer, or, if needs are left, what the last one met has found."""
    whole = len(now.met) == len(solution.needs)
    answer = _final_answer(solution, now) if whole else now.met[-1].value
    if not answer:
        return GivenUp("the answer does not stand in what was read")
    return Move(_safe(f"{said} So the answer is {answer}.", reserved), Answer(_safe(answer, reserved)))


def _safe(text: str, reserved: frozenset[str]) -> str:
    return neutralise(" ".join(text.split()), reserved)


def _final_answer(solution: Solution, now: Readings) -> str:
    """The first accepted answer that stands in what was read; empty if none does.

    Where no passage can be evidence of it, as of yes and no, to have met all needs is enough.
    """
    answers = solution.question.answers
    informative = informative_answers(answers)
    if not informative:
        return answers[0]
    if solution.in_order:
        value = now.met[-1].value
        return next((answer for answer in answers if has_answer(value, [answer])), value)
    read = [text for met in now.met for text in (met.read.title, met.read.text)]
    return next((answer for answer in informative if any(has_answer(text, [answer]) for text in read)), "")


def _candidates(solution: Solution, now: Readings) -> Iterator[Thought]:
    """Queries for what is needed next, the best first."""
    if not solution.in_order:
        yield from _for_titles(solution, now)
        return
    need = solution.needs[len(now.met)]
    asked = only_known(_filled(need.ask, now.met), now.known)
    think = _LOOK_UP if len(solution.needs) == 1 else f"{'Next' if now.met else 'First'} I look for {asked}."
    yield from ((query, think) for query in _wordings(asked, need, now))
    rest = keywords(solution.question.text, asked)
    if rest:
        yield f"{keywords(asked)} {rest}".strip(), think


def _for_titles(solution: Solution, now: Readings) -> Iterator[Thought]:
    """First what the question or a passage names, then what the question asks, then what is known by its words."""
    asked = solution.question.text
    met = {found.need for found in now.met}
    left = [need for need in solution.needs if need not in met]
    known = [need for need in left if is_known(bare(need.title), now.known)]
    named = [n for n in known if has_answer(asked, [bare(n.title)]) or now.name(bare(n.title))]
    for need in sorted(named, key=lambda n: _mention(asked, n)):
        yield from ((query, _looks_up(solution, need, now)) for query in _title_wordings(asked, need, now))
    yield from ((query, _LOOK_UP) for query in _wordings(asked, Need(), now))
    for need in known:
        if need not in named:
            yield from ((query, _looks_up(solution, need, now)) for query in _title_wordings(asked, need, now))


def _wordings(asked: str, need: Need, now: Readings) -> Iterator[str]:
    yield only_known(asked, now.known)
    if is_known(bare(need.title), now.known):
        yield f"{bare(need.title)} {keywords(asked, bare(need.title))}".strip()
    yield names(asked)
    for title in now.latest_titles:
        yield f"{title} {keywords(asked, title)}".strip()


def _title_wordings(asked: str, need: Need, now: Readings) -> Iterator[str]:
    title = bare(need.title)
    typed = only_known(need.title, now.known)
    yield typed
    yield f"{typed} {keywords(asked, typed)}".strip()
    yield title


def _mention(asked: str, need: Need) -> tuple[bool, int]:
    at = asked.casefold().find(bare(need.title).casefold())
    return at < 0, at


def _looks_up(solution: Solution, need: Need, now: Readings) -> str:
    title = bare(need.title)
    if now.met:
        return f"Next I look up {title}."
    others = [bare(n.title) for n in solution.needs if n is not need]
    if solution.compares and len(others) == 1 and is_known(others[0], now.known):
        return f"I have to compare {title} and {others[0]}. First I look up {title}."
    return f"First I look up {title}."


def _filled(ask: str, met: Sequence[Met]) -> str:
    """A sub-question with what was found in place of #1, #2, ...; any other number is text ("the #1 hit")."""
    return _REFERENCE.sub(lambda m: met[int(m[1]) - 1].value if 1 <= int(m[1]) <= len(met) else m[0], ask)
