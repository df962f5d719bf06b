"""Measures by name, computed by trec_eval's own code (ir_measures with pytrec-eval-terrier).

Names are those of ir_measures: ``nDCG@10``, ``RR@10``, ``R@100``, ``AP``, ``Success@5``, ... and two of ours:
``AllGold@k``, 1 if every relevant passage is among the first k, and ``Answer@k``, DPR's top-k accuracy.

As in trec_eval, scores are compared as 32-bit floats, ties rank by passage id in descending order, and the order of
the run is ignored. Every judged query counts: one that is missing from the run gets 0 (``trec_eval -c``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retrieval.evaluation.judgements import Qrels
from retrieval.evaluation.runs import Run
from sleuth.errors import ConfigError, did_you_mean
from sleuth.statistics import Interval, PairedDifference, mean_interval, paired_difference

MEASURES = ("nDCG@10", "RR@10", "R@5", "R@10", "R@100", "AP", "AllGold@5", "AllGold@10")
ANSWER_MEASURES = ("Answer@1", "Answer@5", "Answer@20", "Answer@100")

WHOLE_RUN = 1_000
"""Hits per query for a measure without a cutoff, as TREC's tracks submit and published figures assume."""

_ALL_GOLD = "AllGold"
_ANSWER = "Answer"
_SLACK = 1e-9

PerQuery = dict[str, dict[str, float]]
"""Value by query id, by name of the measure."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """The trec_eval measure for a name, and how to post-process its values."""

    name: str
    base: Any
    cutoff: int | None


def cutoff_of(name: str) -> int | None:
    """The k in a measure's name; None if it uses the whole run."""
    found = re.search(r"@(\d+)$", name)
    return int(found.group(1)) if found else None


def depth_of(names: Sequence[str], least: int = WHOLE_RUN) -> int:
    """How many hits per query the measures need; ``least`` where there are none."""
    return max((cutoff_of(name) or WHOLE_RUN for name in names), default=least)


def is_answer_measure(name: str) -> bool:
    return name.startswith(f"{_ANSWER}@")


def per_query(qrels: Qrels, run: Run, names: Sequence[str] = MEASURES, answers: Qrels | None = None) -> PerQuery:
    """Every measure for every judged query. ``answers`` are the judgements for ``Answer@k`` (see `answers.py`).

    Raises ConfigError for an unknown measure.
    """
    plans = [_plan(name) for name in names]
    if answers is None and any(is_answer_measure(name) for name in names):
        raise ConfigError("Answer@k needs answers and the texts of passages")
    ours = [plan for plan in plans if is_answer_measure(plan.name)]
    values = _work_out([plan for plan in plans if plan not in ours], qrels, run)
    values |= _work_out(ours, answers or {}, run)
    return {name: values[name] for name in names}


def means(values: PerQuery) -> dict[str, float]:
    """The mean of every measure over its queries."""
    return {name: sum(found.values()) / len(found) for name, found in values.items() if found}


def intervals(values: PerQuery, *, seed: int = 0) -> dict[str, Interval]:
    """95 % interval over queries of every mean."""
    return {name: mean_interval(list(found.values()), seed=seed) for name, found in values.items() if found}


def differences(a: PerQuery, b: PerQuery, *, seed: int = 0) -> dict[str, PairedDifference]:
    """How much better b is than a, query by query, for every measure that both have."""
    return {
        name: paired_difference(list(a[name].values()), [b[name][query] for query in a[name]], seed=seed)
        for name in a
        if name in b and a[name] and a[name].keys() == b[name].keys()
    }


def check_measure(name: str) -> None:
    """Raise ConfigError for an unknown measure."""
    _plan(name)


def _plan(name: str) -> _Plan:
    import ir_measures

    cutoff = cutoff_of(name)
    if "@" in name and not cutoff:  # trec_eval itself would abort the process on such a name
        raise ConfigError(f"no measure '{name}'", "a cutoff is a whole number from 1, for example nDCG@10")
    own = {_ALL_GOLD: ir_measures.R, _ANSWER: ir_measures.Success}.get(name.partition("@")[0])
    if own is not None:
        if cutoff is None:
            raise ConfigError(f"measure '{name}' needs a cutoff", f"for example {name.partition('@')[0]}@5")
        return _Plan(name, own @ cutoff, cutoff)
    try:
        base = ir_measures.parse_measure(name)
    except (NameError, ValueError, SyntaxError, KeyError, AssertionError, TypeError):
        known = (*MEASURES, *ANSWER_MEASURES, "P@10", "Success@5", "RR", "Rprec", "Bpref")
        raise ConfigError(f"no measure '{name}'", did_you_mean(name, known)) from None
    if base.NAME == "RR" and cutoff is not None:
        rel = base.params.get("rel")
        base = ir_measures.RR if rel is None else ir_measures.RR(rel=rel)
    if not ir_measures.pytrec_eval.supports(base):
        raise ConfigError(f"trec_eval has no measure '{name}'", did_you_mean(name, MEASURES))
    return _Plan(name, base, cutoff)


def _work_out(plans: Sequence[_Plan], qrels: Qrels, run: Run) -> PerQuery:
    import ir_measures

    values: PerQuery = {plan.name: dict.fromkeys(qrels, 0.0) for plan in plans}
    judged_run = {query: scores for query, scores in run.items() if scores and qrels.get(query)}
    judged = {query: qrels[query] for query in judged_run}
    if not judged_run or not plans:
        return values
    bases = list(dict.fromkeys(plan.base for plan in plans))
    for metric in ir_measures.pytrec_eval.iter_calc(bases, judged, judged_run):
        for plan in _of(plans, metric.measure):
            values[plan.name][metric.query_id] = _finish(plan, metric.value)
    return values


def _of(plans: Iterable[_Plan], base: Any) -> Iterable[_Plan]:
    return (plan for plan in plans if plan.base == base)


def _finish(plan: _Plan, value: float) -> float:
    if plan.name.startswith(f"{_ALL_GOLD}@"):
        return float(value > 1 - _SLACK)
    if plan.base.NAME == "RR" and plan.cutoff is not None:
        return value if value > 1 / plan.cutoff - _SLACK else 0.0
    return float(value)


def as_plain(values: Mapping[str, PairedDifference], other: Mapping[str, float]) -> dict[str, dict[str, float | str]]:
    """Differences as JSON values, with the mean of the run compared with."""
    return {
        name: {
            "other": other[name],
            "difference": found.difference,
            "low": found.low,
            "high": found.high,
            "p_value": found.p_value,
            "method": found.method,
        }
        for name, found in values.items()
    }
