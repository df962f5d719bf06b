"""trec_eval's figures beside a second implementation written from the definitions, ties and gaps included."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.evaluation.answers import answer_qrels
from retrieval.evaluation.measures import MEASURES, differences, intervals, means, per_query
from sleuth.errors import ConfigError
from sleuth.statistics import Interval, paired_difference

Qrels = dict[str, dict[str, int]]
Run = dict[str, dict[str, float]]


def ranking(scores: dict[str, float]) -> list[str]:
    """trec_eval's order: 32-bit scores descending, equal ones by id descending."""
    return sorted(scores, key=lambda d: (float(np.float32(scores[d])), d.encode()), reverse=True)


def by_definition(judged: dict[str, int], scores: dict[str, float]) -> dict[str, float]:
    ranked = ranking(scores)
    relevant = {d for d, rel in judged.items() if rel > 0}
    gains = [judged.get(d, 0) for d in ranked]
    ideal = sorted(judged.values(), reverse=True)

    def dcg(values: list[int]) -> float:
        return sum(max(v, 0) / math.log2(i + 2) for i, v in enumerate(values[:10]))

    hits = [d in relevant for d in ranked]
    first = next((i for i, hit in enumerate(hits[:10], start=1) if hit), None)
    precisions = [sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]
    found = {k: sum(hits[:k]) / len(relevant) if relevant else 0.0 for k in (5, 10, 100)}
    return {
        "nDCG@10": dcg(gains) / dcg(ideal) if dcg(ideal) else 0.0,
        "RR@10": 1 / first if first else 0.0,
        "AP": sum(precisions) / len(relevant) if relevant else 0.0,
        **{f"R@{k}": value for k, value in found.items()},
        **{f"AllGold@{k}": float(bool(relevant) and found[k] == 1) for k in (5, 10)},
    }


IDS = st.sampled_from([f"d{i}" for i in range(14)] + ["é", "Z", "z"])
SCORES = st.one_of(st.sampled_from([0.0, 1.0, 1.00000001, 2.0, -3.5]), st.floats(-100, 100))
QUERIES = st.sampled_from(["1", "2", "3"])


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(QUERIES, st.dictionaries(IDS, st.integers(0, 3), min_size=1, max_size=8), min_size=1),
    st.dictionaries(QUERIES, st.dictionaries(IDS, SCORES, max_size=17)),
)
def test_equal_to_the_definitions(qrels: Qrels, run: Run) -> None:
    values = per_query(qrels, run)
    assert list(values) == list(MEASURES)
    for query, judged in qrels.items():
        expected = by_definition(judged, run.get(query, {}))
        for name, value in expected.items():
            assert values[name][query] == pytest.approx(value, abs=1e-6), (name, query)


def test_ties_are_those_of_32_bit_scores_and_fall_by_id_descending() -> None:
    qrels = {"1": {"a": 1}}
    assert per_query(qrels, {"1": {"a": 1.00000001, "b": 1.0}}, ["RR@10"])["RR@10"]["1"] == 0.5
    assert per_query(qrels, {"1": {"a": 1.001, "b": 1.0}}, ["RR@10"])["RR@10"]["1"] == 1.0


def test_a_query_that_the_run_lacks_counts_as_zero_and_an_unjudged_one_not_at_all() -> None:
    values = per_query({"1": {"a": 1}, "2": {"b": 1}}, {"1": {"a": 1.0}, "9": {"a": 1.0}}, ["R@5", "AP"])
    assert means(values) == {"R@5": 0.5, "AP": 0.5}
    assert means(per_query({"1": {"a": 1}}, {}, ["AP"])) == {"AP": 0.0}


def test_reciprocal_rank_is_cut_at_its_k() -> None:
    run = {"1": {f"d{i:02d}": -float(i) for i in range(20)}}
    for place, at_ten, whole in ((9, 0.1, 0.1), (10, 0.0, 1 / 11)):
        values = per_query({"1": {f"d{place:02d}": 1}}, run, ["RR@10", "RR"])
        assert values["RR@10"]["1"] == pytest.approx(at_ten)
        assert values["RR"]["1"] == pytest.approx(whole)


@pytest.mark.parametrize("name", ["ndcg@10", "nDCG@0", "nDCG@-1", "R@", "R@x", "AllGold", "RBP", "", "Answer@5"])
def test_what_is_no_measure_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        per_query({"1": {"a": 1}}, {"1": {"a": 1.0}}, [name])


def test_differences_are_paired_by_query() -> None:
    qrels = {str(i): {"a": 1} for i in range(20)}
    good: Run = {query: {"a": 2.0, "b": 1.0} for query in qrels}
    poor: Run = {query: {"a": 1.0, "b": 2.0} for query in reversed(qrels)}
    a, b = (per_query(qrels, run, ["RR@10", "R@5"]) for run in (poor, good))
    found = differences(a, b)
    assert found["RR@10"].difference == 0.5
    assert found["RR@10"].p_value == 0
    assert found["R@5"] == paired_difference([1.0] * 20, [1.0] * 20)
    assert (found["RR@10"].method, found["R@5"].method) == ("paired_bootstrap", "mcnemar")
    assert intervals(a)["RR@10"] == Interval(0.5, 0.5, "bootstrap")
    share = intervals(b)["RR@10"]
    assert (share.low, share.high, share.method) == (pytest.approx(20 / (20 + 1.959964**2)), 1.0, "wilson")


def test_top_k_accuracy_by_hand() -> None:
    answers = {"1": ["salt"], "2": ["rope"], "3": ["paper"]}
    texts = {"1": {"a": "no", "b": "salt here"}, "2": {"a": "saltrope"}}
    run = {"1": {"a": 2.0, "b": 1.0}, "2": {"a": 1.0}}
    judged = answer_qrels(answers, texts)
    assert judged == {"1": {"a": 0, "b": 1}, "2": {"a": 0}, "3": {}}
    values = per_query({"1": {"z": 1}}, run, ["Answer@1", "Answer@2"], judged)
    assert values == {"Answer@1": {"1": 0.0, "2": 0.0, "3": 0.0}, "Answer@2": {"1": 1.0, "2": 0.0, "3": 0.0}}
