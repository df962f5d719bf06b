"""The same questions answered twice: every question's figures, and what the paired test says of their difference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from sleuth.evidence import golds_of
from sleuth.layout import EvaluationLayout
from workflows.play import played

Values = Mapping[tuple[str, str], float]
"""One measure by question: id and text, since ids of two files may coincide; averaged over its samples."""
MEASURES = ("em", "f1", "reward", "gold_recall", "searches")


def values_of(samples: Iterable[EvaluationLayout]) -> dict[str, Values]:
    """The measures of every question that could be scored: EM, F1 and, where they are known, the reward, the share of
    gold passages found by questions that need all of theirs, and the searches made.
    """
    from rewards.text_match import exact_match, f1

    given: dict[str, dict[tuple[str, str], list[float]]] = {name: defaultdict(list) for name in MEASURES}
    found_any = False
    for row in (row for sample in samples for row in played(sample)):
        if not row.trajectory.scorable:
            continue
        question, answer = row.trajectory.question, row.trajectory.answer
        key = question.id, question.text
        given["em"][key].append(exact_match(answer, question.answers))
        given["f1"][key].append(f1(answer, question.answers))
        if row.reward is not None:
            given["reward"][key].append(row.reward)
        golds = golds_of(question).found(row.trajectory.hits)
        if golds.wanted and not question.alternatives:
            given["gold_recall"][key].append(golds.found / golds.wanted)
        given["searches"][key].append(len(row.trajectory.queries))
        found_any = found_any or bool(row.trajectory.hits)
    if not found_any:  # nothing was searched
        del given["gold_recall"], given["searches"]
    return {
        measure: {key: sum(found) / len(found) for key, found in by_question.items()}
        for measure, by_question in given.items()
        if by_question
    }


def compare(a: Mapping[str, Values], b: Mapping[str, Values]) -> dict[str, Any]:
    """The paired differences b - a over the questions that both answered; empty if there are none.

    That of EM stands at the top, those of other measures under the measure's name.
    """
    from sleuth.statistics import paired_difference

    found: dict[str, Any] = {}
    for measure in (name for name in a if name in b):
        shared = sorted(a[measure].keys() & b[measure].keys())
        if shared:
            difference = paired_difference([a[measure][i] for i in shared], [b[measure][i] for i in shared])
            row = {"n": len(shared), **asdict(difference)}
            found |= row if measure == "em" else {measure: row}
    return found


def system_name(row: Mapping[str, Any]) -> str:
    """What answers in a cell of a grid or a row of a suite, in words."""
    where = "" if row["retriever"] == "-" else f", {row['retriever']}"
    return f"{row['policy']}, {row['mode']}{where}"
