"""What the turns of an episode have shown, and which needs of a solution are met by it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from envs.queries import bare, clue, content_words, nearest_sentence, shown_part, spaced
from envs.solutions import Need, Solution
from sleuth.evidence import has_answer, informative_answers, normalise_title, parent_id
from sleuth.types import Hit, Passage, Turn

CLUE_WORDS = 20
"""Words of a passage that a thought quotes, at most."""
_VALUE_WORDS = 8


@dataclass(frozen=True, slots=True)
class Read:
    """A passage as far as an observation has shown it; its title is empty where it was not shown.

    ``said``: title and text as `spaced` has them; ``words``: their content words.
    """

    id: str
    title: str
    text: str
    said: str
    words: frozenset[str]


@dataclass(frozen=True, slots=True)
class Met:
    """A need that is met by a passage: the value found in it, and the words that say so."""

    need: Need
    read: Read
    value: str
    clue: str


@dataclass(frozen=True, slots=True)
class Readings:
    """``known``: the content words of the question and of everything shown. ``latest_titles``: of the last search."""

    reads: tuple[Read, ...]
    known: frozenset[str]
    met: tuple[Met, ...]
    latest_titles: tuple[str, ...]

    @classmethod
    def of(cls, solution: Solution, turns: Sequence[Turn]) -> Readings:
        return cls._of(solution, [_reads(turn.hits, turn.observation) for turn in turns])

    @classmethod
    def of_hits(cls, solution: Solution, hits: Sequence[Hit]) -> Readings:
        """What passages say that are shown in full."""
        whole = " ".join(f"{spaced(hit.passage.title)} {spaced(hit.passage.text)}" for hit in hits)
        return cls._of(solution, [_reads(tuple(hits), whole)])

    @classmethod
    def _of(cls, solution: Solution, by_turn: Sequence[Sequence[Read]]) -> Readings:
        reads = tuple(read for found in by_turn for read in found)
        known = content_words(solution.question.text).union(*(read.words for read in reads))
        met = _in_order(solution, reads) if solution.in_order else _as_read(solution, reads)
        latest = by_turn[-1] if by_turn else ()
        return cls(reads, known, tuple(met), tuple(dict.fromkeys(r.title for r in latest if r.title)))

    def name(self, title: str) -> bool:
        """Whether a passage says ``title`` word by word."""
        return any(spaced(title) in read.said for read in self.reads)


@functools.lru_cache(maxsize=4096)
def _reads(hits: tuple[Hit, ...], observation: str) -> tuple[Read, ...]:
    """The passages of a turn. Kept, since a demonstrator looks at all turns again before each move."""
    seen = spaced(observation)
    return tuple(read for hit in hits if (read := _read(hit.passage, seen)))


def _read(passage: Passage, seen: str) -> Read | None:
    text = shown_part(passage.text, seen)
    if not text:
        return None
    title = passage.title if spaced(passage.title) in seen else ""
    return Read(passage.id, title, text, spaced(title) + spaced(text), content_words(f"{title} {text}"))


def _may_have(need: Need, read: Read) -> bool:
    return not need.golds or not need.golds.isdisjoint((read.id, parent_id(read.id), normalise_title(read.title)))


def _in_order(solution: Solution, reads: Sequence[Read]) -> Iterator[Met]:
    for need in solution.needs:
        met = next((found for read in reads if (found := _with_value(need, read))), None)
        if met is None:
            return
        yield met


def _with_value(need: Need, read: Read) -> Met | None:
    """The need, met if the passage has a value of it. No passage can have a yes or no: to have read it is enough."""
    if not _may_have(need, read):
        return None
    values = informative_answers(need.values)
    if not values and need.golds and need.values:
        return Met(need, read, need.values[0], nearest_sentence(read.text, need.ask, CLUE_WORDS))
    value = next((value for value in values if spaced(value) in read.said and has_answer(read.text, [value])), "")
    return Met(need, read, value, clue(read.text, [value], CLUE_WORDS)) if value else None


def _as_read(solution: Solution, reads: Sequence[Read]) -> Iterator[Met]:
    """Needs in the order in which their passages were read."""
    left = list(solution.needs)
    for read in reads:
        for need in [need for need in left if _may_have(need, read)]:
            left.remove(need)
            yield _with_title(solution, need, read)


def _with_title(solution: Solution, need: Need, read: Read) -> Met:
    """What matters in a passage: the next title, a fact that the data set gives, the answer, or what is asked."""
    others = [] if solution.compares else [bare(n.title) for n in solution.needs if n.title != need.title]
    hints = [" ".join(hint.split()[:CLUE_WORDS]) for hint in need.hints]
    wanted = [*others, *hints, *informative_answers(solution.question.answers)]
    found = next((value for value in wanted if has_answer(read.text, [value])), "")
    said = clue(read.text, [found], CLUE_WORDS) or nearest_sentence(read.text, solution.question.text, CLUE_WORDS)
    value = found if found and len(found.split()) <= _VALUE_WORDS else bare(need.title)
    return Met(need, read, value, said)
