"""Joins the packages: makes policies, retrievers, drivers and sinks from settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agent.config import Mode, PolicySettings
from envs.config import EnvironmentSettings
from retrieval.config import RetrieverSettings
from sleuth.errors import ConfigError, DataError
from sleuth.layout import RunLayout
from sleuth.leaks import HeldOut, Leaks, without_leaks
from sleuth.protocols import MetricSink, Policy, Retriever
from sleuth.seeding import derive_seed, drawn
from sleuth.settings import Draw
from sleuth.types import Question
from workflows.config import DataSettings, Gold, RunSettings, SourceSettings

if TYPE_CHECKING:
    from agent.codec import HFCodec
    from agent.learning.grpo import TrainingData
    from agent.rollout import RolloutDriver
    from agent.tools import ToolBox

T = TypeVar("T")
log = logging.getLogger("sleuth.run")

CONSOLE_COLUMNS = {
    "dev/em": "dev EM",
    "reward": "reward",
    "reward_std": "std",
    "groups/flat": "flat",
    "rollout/searches": "searches",
    "rollout/answered": "answered",
    "kl": "kl",
    "entropy": "entropy",
    "loss": "loss",
    "check/logprob_gap": "gap",
    "time/generate": "generate",
    "time/retrieve": "retrieve",
    "time/score": "score",
    "time/reference": "reference",
    "time/update": "update",
}


def make_policy(settings: PolicySettings | str | Path) -> tuple[Policy, HFCodec]:
    """A policy for evaluation or chat with its codec; a path or name means default settings."""
    chosen = settings if isinstance(settings, PolicySettings) else PolicySettings(model=str(settings))
    from agent.policies.backends import open_policy

    return open_policy(chosen)


def make_driver(
    policy: Policy, codec: HFCodec, environment: EnvironmentSettings, retriever: Retriever | None
) -> RolloutDriver:
    from agent.rollout import RolloutDriver
    from envs.factory import make_environment

    tools = make_tool_box(environment, retriever)
    return RolloutDriver(policy, codec, make_environment(environment, codec), retriever, environment.top_k, tools)


def make_tool_box(environment: EnvironmentSettings, retriever: Retriever | None) -> ToolBox | None:
    """The tools besides search; None if there are none.

    Raises ConfigError if ``open`` is among them and the retriever, once it is known, has no whole documents.
    """
    if environment.kind != "search" or len(environment.tools) == 1:
        return None
    from agent.tools import ToolBox
    from envs.tools import make_tools, time_limits
    from retrieval.documents import documents_of

    documents = documents_of(retriever)
    if retriever is not None and documents is None and any(tool.kind == "open" for tool in environment.tools):
        raise ConfigError(
            "environment.tools has open, but this retriever finds passages only, not whole documents",
            "search an index of this machine made by sleuth index, or leave open out",
        )
    tools = make_tools(environment, documents)
    return ToolBox(tools, time_limits(environment, tools))


def make_retriever(settings: RetrieverSettings | None) -> Retriever | None:
    """The retriever of a run; a missing index is built if its corpus is given."""
    if settings is None:
        return None
    from retrieval.open import open_retriever
    from retrieval.progress import build_progress

    return open_retriever(settings, progress=build_progress)


def with_mode(settings: EnvironmentSettings, mode: Mode) -> EnvironmentSettings:
    """The same budgets and preset in another mode; a third-party environment keeps its own kind."""
    return settings if ":" in settings.kind and mode == "search" else settings.model_copy(update={"kind": mode})


def make_sink(settings: RunSettings, keep_to: int | None = None) -> MetricSink:
    from sleuth.sinks import ConsoleSink, JsonlSink, MultiSink, TensorBoardSink

    layout = RunLayout(settings.out)
    makers: Mapping[str, Any] = {
        "console": lambda: ConsoleSink(CONSOLE_COLUMNS),
        "jsonl": lambda: JsonlSink(layout.metrics, keep_to=keep_to),
        "tensorboard": lambda: TensorBoardSink(layout.tensorboard),
    }
    return MultiSink([makers[name]() for name in settings.sinks])


def load_training_data(data: DataSettings, seed: int) -> TrainingData:
    """The training questions, without those that leak (`read_training`)."""
    from agent.learning.grpo import TrainingData

    if not data.train:
        raise ConfigError("no training questions are given", "set data.train to a list of {path: ...}")
    return TrainingData(read_training(data, seed)[0], [source.weight for source in data.train])


def read_training(data: DataSettings, seed: int) -> tuple[list[list[Question]], Leaks]:
    """The questions of each source, without those about what ``dev`` or ``test`` asks, and how many those were.

    Raises DataError if a source has no others.
    """
    held, sources, leaks = held_out(data), [], Leaks()
    for source in data.train:
        kept, dropped = without_leaks(read_source(source, seed, data.gold), held, lambda question: question)
        if not kept:
            raise DataError(
                f"every question of {source.path} shares a gold passage or title with one of data.dev or data.test",
                "train on other questions, or set data.leaks=keep",
            )
        sources.append(kept)
        leaks += dropped
    return sources, leaks


def held_out(data: DataSettings) -> HeldOut:
    """What no training question and no demonstration may be about, or ask; nothing where both are kept."""
    golds, asked = data.leaks == "drop", data.repeats == "drop"
    paths = dict.fromkeys(path for path in (data.dev, data.test) if path is not None and (golds or asked))
    return HeldOut.of((q for path in paths for q in read_questions(path)), golds=golds, asked=asked)


def read_source(source: SourceSettings, seed: int, gold: Gold = "id", *, tell: bool = False) -> list[Question]:
    """The questions of a source, those of a seeded draw by the run's ``seed``.

    ``tell``: say how many the length of their answers leaves.
    """
    if source.kinds is None and source.max_answer_words is None and source.draw == "first":
        return read_questions(source.path, source.limit, gold)
    questions = read_questions(source.path, gold=gold)
    wanted = [question for question in questions if source.kinds is None or question.kind in source.kinds]
    if not wanted:
        there = ", ".join(sorted({question.kind for question in questions} - {""})) or "unknown"
        asked = ", ".join(source.kinds or ())
        raise DataError(f"{source.path} has no question of kind {asked}", f"its kinds are {there}")
    what = f"questions of {source.path}"
    short = short_answered(wanted, source.max_answer_words, lambda one: one, what, tell=tell)
    return limited(short, source.limit, source.draw, seed)


def limited(rows: Sequence[T], limit: int | None, draw: Draw, seed: int) -> list[T]:
    """At most ``limit`` of the rows."""
    if limit is None or draw == "first":
        return list(rows[:limit])
    return drawn(rows, limit, derive_seed(seed, "rows"))


def short_answered(
    rows: Sequence[T], most: int | None, question: Callable[[T], Question], what: str, *, tell: bool = True
) -> list[T]:
    """The rows whose question's first answer has at most ``most`` words, and one line on how many those are.

    Raises DataError if there are none.
    """
    if most is None or not rows:
        return list(rows)
    kept = [row for row in rows if len(question(row).answers[0].split()) <= most]
    if not kept:
        raise DataError(f"none of {len(rows):,} {what} has an answer of at most {most} words", "raise max_answer_words")
    if tell:
        log.info(
            "%s of %s %s are kept, with answers of at most %d words", f"{len(kept):,}", f"{len(rows):,}", what, most
        )
    return kept


def read_dev(data: DataSettings, limit: int | None, seed: int) -> list[Question]:
    """At most ``limit`` dev questions. Raises DataError where none has an answer as short as they are to be."""
    most, draw = data.dev_max_answer_words, data.dev_draw
    questions = read_questions(data.dev or "", limit if most is None and draw == "first" else None, data.gold)
    kept = short_answered(questions, most, lambda question: question, f"questions of {data.dev}")
    return limited(kept, limit, draw, seed)


def read_questions(path: str, limit: int | None = None, gold: Gold = "id") -> list[Question]:
    """The questions of a file; with ``gold`` title they list no gold passages by id."""
    from envs.questions import load_questions

    questions = load_questions(path, limit=limit)
    return questions if gold == "id" else [replace(question, gold_ids=()) for question in questions]


def limit_threads(threads: int | None, policy: PolicySettings | None = None, rows: int = 4096) -> None:
    """Set torch's thread count: ``threads``, else what ``policy`` has work for when it samples ``rows`` rows at once.

    Without a policy, or with one whose size is not known yet, there is work for all cores.
    """
    from hub.threads import use_threads

    use_threads(threads, policy.model if policy else None, rows)
