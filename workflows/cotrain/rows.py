"""The first half of a round: rollouts on training questions, and training rows from what they found."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retrieval.training.config import SourceSettings
from retrieval.training.rows import load_rows
from sleuth.artifacts import atomic_write
from sleuth.errors import DataError
from sleuth.evidence import golds_of
from sleuth.leaks import Kept
from sleuth.query_forms import query_of
from sleuth.seeding import derive_seed
from sleuth.types import Passage, Question, Sampling, Trajectory
from workflows.cotrain.context import Cotraining, rollouts_of
from workflows.cotrain.guards import query_figures
from workflows.wiring import read_questions, read_training

log = logging.getLogger("sleuth.cotrain")


def roll_out(run: Cotraining, number: int) -> dict[str, Any]:
    """Play the training questions of a round with the policy and retriever of the round before."""
    questions, counts = questions_of_round(run, number)
    policy = run.policy(number - 1)
    samples = run.layout.round(number).rollouts.samples(run.chosen.group_size)
    for place, sample in enumerate(samples):
        run.play(
            f"round {number}: rollouts {place + 1} of {len(samples)}",
            questions,
            policy,
            number - 1,
            sample,
            sampling=Sampling(run.chosen.temperature),
            seed=derive_seed(run.settings.seed, "rollouts", number, place) % 2**32,
            scored=False,
        )
    return {"questions": len(questions), "rollouts": len(questions) * len(samples), **counts}


def questions_of_round(run: Cotraining, number: int) -> tuple[list[Question], dict[str, int]]:
    """The training questions of a round, and how many were refused because dev or test ask them.

    The rounds go through the sources by weight and in a seeded order. Gold passages are taken away unless the labels
    are made from them. Raises DataError if none is left.
    """
    from agent.learning.mixture import mixture

    kept, refused = held_out_questions(run), Counter[str]()
    sources: list[list[Question]] = []
    for questions in read_training(run.settings.data, run.settings.seed)[0]:
        why = [kept.why(question.id, question.text) for question in questions]
        refused.update(filter(None, why))
        sources.append([question for question, reason in zip(questions, why, strict=True) if not reason])
    if not all(sources):
        raise DataError("every question of a training file is a dev or test question", "train on other questions")
    if refused:
        log.warning("%d training questions are dev or test questions and never train", refused.total())
    count, weights = run.chosen.questions, [source.weight for source in run.settings.data.train]
    order = mixture([len(source) for source in sources], weights, count * number, run.settings.seed)
    every = [question for source in sources for question in source]
    chosen = [every[place] for place in dict.fromkeys(order[count * (number - 1) :])]
    blank = not run.chosen.labels.READS_GOLDS
    return [without_golds(one) if blank else one for one in chosen], {f"refused_by_{k}": n for k, n in refused.items()}


def without_golds(question: Question) -> Question:
    """``question`` as one who has no judgements knows it."""
    return replace(question, gold_ids=(), supporting_titles=(), alternatives=False, steps=())


def held_out_questions(run: Cotraining) -> Kept:
    paths = dict.fromkeys(path for path in (run.settings.data.dev, run.settings.data.test) if path is not None)
    return Kept.of(question for path in paths for question in read_questions(path))


def make_rows(run: Cotraining, number: int) -> dict[str, Any]:
    """Write the rows of a round; returns how many there are, how right they are, and how the agent asks."""
    from agent.labelling.searches import asked_in, groups_of, to_row

    chosen = run.chosen
    trajectories = [row.trajectory for row in rollouts_of(run, number)]
    groups = groups_of(trajectories, right_from(chosen.labels.right_from))
    label = chosen.labels.open(run.layout.round(number).replies)
    labels = []
    with run.counting(f"round {number}: rows") as on_progress:
        for done, group in enumerate(groups, start=1):
            labels += [(one, group.question) for one in label(group, asked_in(group, chosen.query_form))]
            if on_progress:
                on_progress(done, len(groups))
    kept, drawn = held_out_questions(run), len(labels)
    labels = [(one, asked) for one, asked in labels if not kept.why(asked.id, asked.text, query_of(one.text))]
    rows = [to_row(one, question, chosen.query_form, f"r{number}-{i}") for i, (one, question) in enumerate(labels)]
    atomic_write(run.layout.round(number).rows, "".join(json.dumps(row) + "\n" for row in rows))
    right = [good for group in groups for good in group.right]
    asked = query_figures(trajectories)
    figures: dict[str, Any] = {
        "rows": len(rows),
        "refused": drawn - len(rows),
        "queries": len({row["query"] for row in rows}),
        "questions": len({(row["question_file"], row["question_id"]) for row in rows}),
        "right": sum(right) / max(len(right), 1),
        "mixed_groups": sum(any(g.right) and not all(g.right) for g in groups) / max(len(groups), 1),
        **label_precision(run, [(question, one.positive) for one, question in labels]),
        "asked": asked,
    }
    watch_queries(run, number, asked)
    log.info("round %d: %d rows from %d rollouts, %.3f of them right", number, len(rows), len(right), figures["right"])
    return figures


def right_from(least: float) -> Callable[[Trajectory], bool]:
    """What says whether a rollout is right: the F1 of its answer reaches ``least``."""
    from rewards.text_match import f1

    def right(trajectory: Trajectory) -> bool:
        return f1(trajectory.answer, trajectory.question.answers) >= least

    return right


def label_precision(run: Cotraining, pairs: Sequence[tuple[Question, Passage]]) -> dict[str, float]:
    """Share of the positives that are gold passages of their questions, where those are known: for people alone."""
    files, gold = dict.fromkeys(source.path for source in run.settings.data.train), run.settings.data.gold
    known = {(one.id, one.text): golds_of(one) for path in files for one in read_questions(path, gold=gold)}
    judged = [(known[q.id, q.text], passage) for q, passage in pairs if known.get((q.id, q.text))]
    hits = sum(golds.of(passage) is not None for golds, passage in judged)
    return {"judged_rows": len(judged), "precision": hits / len(judged)} if judged else {}


def watch_queries(run: Cotraining, number: int, asked: dict[str, float]) -> None:
    """Warn where queries collapse into one form."""
    guards = run.chosen.guards
    said = {
        "different questions ask the same": asked["queries"] > 0 and asked["distinct"] < guards.min_distinct,
        "queries only say the question again": asked["copied"] > guards.max_copied,
        "episodes ask the same again": asked["repeated"] > guards.max_repeated,
    }
    for what in (what for what, holds in said.items() if holds):
        figures = ", ".join(f"{name} {asked[name]:.2f}" for name in ("distinct", "copied", "repeated"))
        log.warning("round %d: the agent's queries collapse: %s (%s)", number, what, figures)


def refuse_held_out(rows: Iterable[Path], kept: Kept) -> None:
    """Raises DataError if a row is of a dev or test question, by id or by text."""
    for path in rows:
        for place, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            row = json.loads(line)
            why = kept.why(row["question_id"], row["question"], query_of(row["query"]))
            if why:
                raise DataError(
                    f"{path}, line {place}: the row is of a dev or test question, by its {why}",
                    "such rows never train: drop it, or name other dev and test questions",
                )


def refuse_held_out_queries(sources: Iterable[SourceSettings], kept: Kept) -> None:
    """Raises DataError if a row of a file that others made asks a dev or test question; its ids say nothing of that."""
    for source in sources:
        for row in load_rows([source]):
            if kept.why("", query_of(row.query)):
                raise DataError(
                    f"{source.path}: the row {row.id} asks a dev or test question",
                    "such rows never train: drop it, or name other dev and test questions",
                )
