"""The stage that makes demonstrations: it reads and plays each source, keeps what is worth learning, and says what
is not.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from agent.demonstration_config import DemonstrationSource, QuestionSource, RunSource
from sleuth.artifacts import atomic_write
from sleuth.errors import DataError
from sleuth.leaks import without_leaks
from sleuth.progress import plain_progress
from sleuth.types import ScoredTrajectory, Trajectory
from workflows.checks import say_leaks
from workflows.context import StageContext
from workflows.golds import check_golds
from workflows.reading import play_readers
from workflows.wiring import held_out, limited, short_answered

if TYPE_CHECKING:
    from agent.codec import HFCodec
    from agent.demonstrate import Played
    from envs.plans import Reciter
    from envs.searcher import Searcher
    from sleuth.demonstrator import Demonstrator
    from sleuth.protocols import Retriever

log = logging.getLogger("sleuth.demonstrations")
T = TypeVar("T")
NOT_FOUND = "its answer does not stand in what was found"


@dataclass(slots=True)
class Tally:
    """What became of the demonstrations, by data set and kind of question."""

    played: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    leaks: int = 0

    def add(self, kind: str, why: str) -> None:
        self.played[kind] += 1
        if why:
            self.dropped[why] += 1
        else:
            self.kept[kind] += 1

    def lines(self) -> list[str]:
        """``1,022 demonstrations, 800 of them kept``, then a line for the kinds and one for the reasons."""
        said = [f"{self.played.total():,} demonstrations, {self.kept.total():,} of them kept"]
        if len(self.played) > 1:
            said.append("kept: " + ", ".join(f"{k} {self.kept[k]:,} of {n:,}" for k, n in sorted(self.played.items())))
        if self.dropped:
            said.append("dropped: " + ", ".join(f"{why}: {n:,}" for why, n in self.dropped.most_common()))
        return said

    def info(self) -> dict[str, Any]:
        kinds = {kind: {"played": n, "kept": self.kept[kind]} for kind, n in sorted(self.played.items())}
        played, kept = self.played.total(), self.kept.total()
        return {
            "played": played,
            "kept": kept,
            "kinds": kinds,
            "dropped": dict(self.dropped.most_common()),
            "leaks": self.leaks,
        }


def make_demonstrations(run: StageContext) -> dict[str, Any] | None:
    """Write the demonstrations of a run; returns their counts, or None if its settings have none.

    Raises DataError if none is worth learning.
    """
    settings = run.settings.demonstrations
    if settings is None:
        return None
    from agent.policies.loading import load_codec
    from sleuth.trajectories import to_line

    codec = load_codec(run.policy_after("policy"), trust_remote_code=run.settings.policy.trust_remote_code)
    tally, lines = Tally(), []
    for source in settings.sources:
        room = None if settings.limit is None else settings.limit - tally.played.total()
        if room == 0:
            break
        for kind, played in _PLAY[source.kind](run, codec, source, room, tally):
            tally.add(kind, played if isinstance(played, str) else played.dropped)
            if not isinstance(played, str) and not played.dropped:
                lines.append(to_line(ScoredTrajectory(played.trajectory, None)))
    if not lines:
        reasons = ", ".join(f"{why}: {n}" for why, n in tally.dropped.most_common())
        asked = any(source.kind == "questions" for source in settings.sources)
        raise DataError(
            f"none of {tally.played.total()} demonstrations is usable ({reasons})",
            "raise environment.turn_tokens, searches or turns, or set demonstrations.require_titles=false"
            if asked
            else "name other runs: they have to search, end in an answer that is accepted, and have found it",
        )
    atomic_write(run.layout.demonstrations, "".join(lines))
    for line in tally.lines():
        log.info("%s", line)
    return tally.info()


Outcome = tuple[str, "Played | str"]
"""The kind of a question, and its demonstration, or why there is none."""


def _play_questions(
    run: StageContext, codec: HFCodec, source: QuestionSource, room: int | None, tally: Tally
) -> list[Outcome]:
    from agent.demonstrate import why_dropped
    from envs.lazy import kind_of, with_lazy_share
    from envs.plans import Reciter

    settings, data = run.settings.demonstrations, run.settings.data
    assert settings is not None
    held = held_out(data)
    read = _demonstrators(run, source, codec.reserved, bool(held))
    wanted = [one for one in read if source.kinds is None or one.question.kind in source.kinds]
    wanted = short_answered(
        wanted, source.max_answer_words, lambda one: one.question, f"demonstrations from {source.path}"
    )
    chosen, leaks = without_leaks(wanted, held, lambda one: one.question)
    say_leaks(leaks, f"demonstrations from {source.path}")
    tally.leaks += leaks.count
    if not chosen:
        why = "shares no gold passage or title with data.dev or data.test" if wanted else "is of the kinds asked for"
        raise DataError(f"no question of {source.path} {why}", "name another source of demonstrations")
    chosen = _within(source, chosen, room, run.settings.seed)
    retriever = run.open_retriever()
    assert retriever is not None
    if run.settings.retriever and source.path not in {data.dev, data.test, *(train.path for train in data.train)}:
        check_golds([one.question for one in chosen], retriever, run.settings.retriever.name)
    if source.mode == "rag":
        solved = [one for one in chosen if not isinstance(one, Reciter)]
        return play_readers(run, codec, source, solved, retriever)
    played_by = with_lazy_share(chosen, settings.lazy, run.settings.seed, settings.lazy_kinds)
    if settings.lazy:
        log.info("%s", _lazy_line(chosen, played_by))
    titles = settings.require_titles and isinstance(played_by[0], Reciter)  # a searcher sees to it itself

    def failing(trajectory: Trajectory) -> str:
        few = len(trajectory.searches) < (source.min_searches or 0)
        return why_dropped(trajectory, require_titles=titles) or (few and "it searches too few times") or ""

    found = _play(run, codec, played_by, retriever, failing)
    return [(kind_of(played.trajectory.question), played) for played in found]


def _demonstrators(
    run: StageContext, source: QuestionSource, reserved: frozenset[str], whole: bool
) -> Sequence[Reciter] | Sequence[Searcher]:
    """Those of a source; ``whole``: also beyond its limit, since some may be left out."""
    from envs.plans import Reciter, holds_plans, neutralised, read_plans
    from envs.searcher import Searcher
    from envs.solutions import read_solutions

    assert run.settings.demonstrations is not None
    if holds_plans(source.path):
        if source.mode == "rag":
            raise DataError(f"{source.path} holds plans, which search", "mode: rag needs questions with gold passages")
        return [Reciter(neutralised(plan, reserved)) for plan in read_plans(source.path)]
    whole = whole or source.draw == "seeded" or bool(source.kinds or source.max_answer_words)
    free, by_title = not run.settings.demonstrations.require_titles, run.settings.data.gold == "title"
    solutions = read_solutions(source.path, None if whole else source.limit, any_passage=free, by_title=by_title)
    return [Searcher(solution, reserved=reserved) for solution in solutions]


def _within(source: DemonstrationSource, rows: Sequence[T], room: int | None, seed: int) -> list[T]:
    """As many of the rows as the limits of the source and of all sources together leave."""
    limits = [limit for limit in (source.limit, room) if limit is not None]
    return limited(rows, min(limits, default=None), source.draw, seed)


def _lazy_line(before: Sequence[Any], after: Sequence[Any]) -> str:
    """``lazy: two_hop 610 of 1,000; all whole: one_hop (1,500)``."""
    from envs.lazy import lazy_counts

    counts = lazy_counts(before, after)
    some = [f"{kind} {made:,} of {total:,}" for kind, (made, total) in counts.items() if made]
    none = [f"{kind} ({total:,})" for kind, (made, total) in counts.items() if not made]
    return f"lazy: {', '.join(some) or 'none'}" + (f"; all whole: {', '.join(none)}" if none else "")


def _play_runs(run: StageContext, codec: HFCodec, source: RunSource, room: int | None, tally: Tally) -> list[Outcome]:
    """Runs with their own observations are played one by one, each with what it has seen; else all together."""
    from agent.demonstrate import Recorded, answer_was_found
    from envs.lazy import kind_of
    from envs.plans import Reciter, neutralised
    from envs.recordings import read_recordings

    held = held_out(run.settings.data)
    recordings = read_recordings(source.path, source.limit if source.draw == "first" and not held else None)
    recordings, leaks = without_leaks(recordings, held, lambda one: one.question)
    say_leaks(leaks, f"runs of {source.path}")
    tally.leaks += leaks.count
    if not recordings:
        raise DataError(
            f"every run of {source.path} shares a gold passage or title with data.dev or data.test",
            "name another source of demonstrations, or set data.leaks=keep",
        )
    recordings = _within(source, recordings, room, run.settings.seed)
    usable = [recording for recording in recordings if not recording.dropped]
    reciters = [Reciter(neutralised(recording.plan, codec.reserved)) for recording in usable]
    found = dict[str, bool]()

    def why(trajectory: Trajectory) -> str:
        found[trajectory.question.id] = answer_was_found(trajectory)
        needed = source.replay or source.require_answer
        return NOT_FOUND if needed and not found[trajectory.question.id] else ""

    if source.replay:
        played = _play(run, codec, reciters, run.open_retriever(), why)
    else:
        played = []
        with plain_progress(f"runs of {source.path}", log.info) as told:
            for one, past in zip(reciters, usable, strict=True):
                played += _play(run, codec, [one], Recorded(past.observations), why)
                told(len(played), len(usable))
    where = "in what this retriever finds" if source.replay else "in what they have seen"
    count = sum(found.values())
    log.info("%s: %d right runs that searched, %d with the answer %s", source.path, len(usable), count, where)
    outcomes: list[Outcome] = [(kind_of(r.question), r.dropped) for r in recordings if r.dropped]
    return outcomes + [(kind_of(one.trajectory.question), one) for one in played]


def _play(
    run: StageContext,
    codec: HFCodec,
    demonstrators: Sequence[Demonstrator],
    retriever: Retriever | None,
    why: Callable[[Trajectory], str],
) -> list[Played]:
    from agent.demonstrate import play
    from envs.factory import make_environment
    from envs.protocols.base import open_protocol

    environment = run.settings.environment
    protocol = open_protocol(environment)
    with plain_progress("demonstrations", log.info) as told:
        return play(
            demonstrators,
            codec,
            make_environment(environment, codec),
            retriever,
            environment.top_k,
            told,
            write=protocol.write,
            end_turns=protocol.tool_messages,
            why=why,
        )


_PLAY: Mapping[str, Callable[..., list[Outcome]]] = {"questions": _play_questions, "runs": _play_runs}
