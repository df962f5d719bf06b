"""What agent and retriever reach after a round, each compared with the round before, question by question."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from sleuth.errors import ConfigError
from sleuth.layout import EvaluationLayout, read_record, write_record
from sleuth.protocols import Retriever
from sleuth.query_forms import form_of
from sleuth.types import Question
from workflows.cotrain.context import Cotraining
from workflows.cotrain.guards import compared
from workflows.paired import Values, compare, values_of
from workflows.wiring import read_dev, read_questions


def evaluate_round(run: Cotraining, number: int) -> dict[str, Any]:
    """Play dev and test after a round; where the retriever changed, also with the policy of before.

    The dev searches are the held-out ones of the next round's guard.
    """
    policy, retriever = run.policy(number), run.open_after(number)
    _check_form(run, retriever)
    asked = _questions(run)
    for name, questions in asked.items():
        run.play(f"round {number}: {name}", questions, policy, number, run.layout.round(number).evaluation(name))
    if number and _swapped(run, number) and run.policy(number - 1) != policy:
        name, questions = list(asked.items())[-1]
        before, out = run.policy(number - 1), swapped(run, number)
        run.play(f"round {number}: {name}, policy of before", questions, before, number, out)
    _judge(run, number, retriever)
    return {"fingerprint": retriever.fingerprint, **figures_of(run, number)}


def _check_form(run: Cotraining, retriever: Retriever) -> None:
    """A reranker is asked in the form of what it reorders, so that it must learn in that one."""
    learning, own = run.chosen.retriever, form_of(retriever)
    if learning is not None and learning.reranker is not None and own != run.chosen.query_form:
        raise ConfigError(
            f"the reranker would learn from queries in the form {run.chosen.query_form} and be asked in the form {own}",
            f"set cotrain.query_form={own}",
        )


def measured_on(run: Cotraining, number: int) -> EvaluationLayout:
    """The evaluation that counts: on test questions, or on dev where there are none."""
    return run.layout.round(number).evaluation("test" if run.settings.data.test else "dev")


def swapped(run: Cotraining, number: int) -> EvaluationLayout:
    return run.layout.round(number).evaluation("swapped")


def figures_of(run: Cotraining, number: int) -> dict[str, Any]:
    """``agent``: means, and paired differences to the round before and to the start; ``retriever``: if it is judged."""
    values = _values(run, number)
    agent: dict[str, Any] = {"means": {name: fmean(of.values()) for name, of in values.items()}}
    if number:
        agent["to_before"] = compare(_values(run, number - 1), values)
        agent["to_start"] = compare(_values(run, 0), values)
        if swapped(run, number).metrics.exists():
            agent["by_retriever"] = compare(_values(run, number - 1), values_of([swapped(run, number)]))
    return {"agent": agent, **_judged(run, number)}


def summarise(run: Cotraining) -> list[dict[str, Any]]:
    """A row for every round that is done, also written to ``rounds.json``."""
    rows = []
    for number in range(run.chosen.rounds + 1):
        if not (after := run.info(number, "evaluate")):
            break
        stages = {name: run.info(number, name) for name in ("rollouts", "rows", "retriever", "guard", "agent")}
        rows.append({"round": number, **{name: info for name, info in stages.items() if info}, "after": after})
    write_record(run.layout.rounds, {"rounds": rows})
    return rows


def _questions(run: Cotraining) -> Mapping[str, list[Question]]:
    data, limit = run.settings.data, run.settings.evaluation.limit
    test = {"test": read_questions(data.test, limit, data.gold)} if data.test else {}
    return {"dev": read_dev(data, limit, run.settings.seed), **test}


def _values(run: Cotraining, number: int) -> dict[str, Values]:
    return values_of([measured_on(run, number)])


def _swapped(run: Cotraining, number: int) -> bool:
    return bool(run.info(number, "guard").get("swapped"))


def _judged(run: Cotraining, number: int) -> dict[str, Any]:
    """Recall on judged queries, for people: no stage reads it."""
    dev = run.chosen.judged
    if dev is None:
        return {}
    values = _recalls(run, number)
    found: dict[str, Any] = {"k": dev.k, "queries": len(values), "recall": fmean(values.values())}
    if number:
        found |= {"to_before": compared(_recalls(run, number - 1), values)}
        found |= {"to_start": compared(_recalls(run, 0), values)}
    return {"retriever": found}


def _recalls(run: Cotraining, number: int) -> dict[tuple[str, str], float]:
    values = (read_record(run.layout.round(number).judged) or {})["values"]
    return {(query, ""): value for query, value in values.items()}


def _judge(run: Cotraining, number: int, retriever: Retriever) -> None:
    """Record the figure of every judged query after a round, if there are any."""
    from retrieval.combine.parts import reach
    from retrieval.training.dev import judge_all, source_of
    from retrieval.training.instructions import search_each
    from retrieval.training.rows import load_rows

    dev = run.chosen.judged
    if dev is None:
        return
    rows = load_rows([source_of(dev)])[: dev.queries]
    found = search_each(retriever, rows, reach(retriever, max(dev.k, 10)))
    values = judge_all(rows, [[hit.passage.id for hit in hits] for hits in found], dev.k)[dev.metric]
    by_query = {row.id: value for row, value in zip(rows, values, strict=True)}
    write_record(run.layout.round(number).judged, {"values": by_query})
