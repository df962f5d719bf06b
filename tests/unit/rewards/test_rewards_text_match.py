"""Answers are compared as the official scripts compare them: against a second implementation, and its oddities."""

import collections
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.official import score_predictions
from rewards.text_match import exact_match, f1, normalise_answer
from sleuth.errors import DataError
from sleuth.types import Question

# --- the published definition, written a second time in the manner of the official scripts ---


def reference_normalize(s):
    s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())


def reference_f1(prediction, truth):
    p, t = reference_normalize(prediction), reference_normalize(truth)
    for word in ("yes", "no", "noanswer"):
        if (p == word) != (t == word):
            return 0.0, 0.0, 0.0
    common = sum((collections.Counter(p.split()) & collections.Counter(t.split())).values())
    if not common:
        return 0.0, 0.0, 0.0
    precision, recall = common / len(p.split()), common / len(t.split())
    return 2 * precision * recall / (precision + recall), precision, recall


def reference_evaluation(gold, prediction):
    """gold: rows of a HotpotQA release. Every metric is a mean over all rows; what is missing adds nothing."""
    total = collections.defaultdict(float)
    for row in gold:
        em = prec = recall = None
        if row["_id"] in prediction["answer"]:
            given = prediction["answer"][row["_id"]]
            em = float(reference_normalize(given) == reference_normalize(row["answer"]))
            value, prec, recall = reference_f1(given, row["answer"])
            for name, x in zip(("em", "f1", "prec", "recall"), (em, value, prec, recall), strict=True):
                total[name] += x
        if row["_id"] in prediction["sp"]:
            given_sp = {tuple(x) for x in prediction["sp"][row["_id"]]}
            gold_sp = {tuple(x) for x in row["supporting_facts"]}
            hit = sum(x in gold_sp for x in given_sp)
            sp_prec = hit / len(given_sp) if given_sp else 0.0
            sp_recall = hit / len(gold_sp) if gold_sp else 0.0
            sp_f1 = 2 * sp_prec * sp_recall / (sp_prec + sp_recall) if sp_prec + sp_recall else 0.0
            sp_em = float(not (given_sp ^ gold_sp))
            for name, x in zip(("em", "f1", "prec", "recall"), (sp_em, sp_f1, sp_prec, sp_recall), strict=True):
                total["sp_" + name] += x
            if em is not None:
                jp, jr = prec * sp_prec, recall * sp_recall
                jf = 2 * jp * jr / (jp + jr) if jp + jr else 0.0
                for name, x in zip(("em", "f1", "prec", "recall"), (em * sp_em, jf, jp, jr), strict=True):
                    total["joint_" + name] += x
    return {name: value / len(gold) for name, value in total.items()}


WORDS = st.lists(
    st.sampled_from(
        ["the", "a", "An", "Oslo", "oslo,", "U.S.", "yes", "no", "noanswer", "Yes.", "é", "it's", "—", "1,000"]
    ),
    max_size=5,
).map(" ".join)
FACTS = st.lists(st.tuples(st.sampled_from(["A", "B", "C"]), st.integers(0, 2)), max_size=4, unique=True)


@given(WORDS | st.text(max_size=20), WORDS | st.text(max_size=20))
def test_single_answers_equal_the_reference(prediction, answer):
    assert normalise_answer(prediction) == reference_normalize(prediction)
    assert exact_match(prediction, [answer]) == float(reference_normalize(prediction) == reference_normalize(answer))
    assert f1(prediction, [answer]) == pytest.approx(reference_f1(prediction, answer)[0])


@given(st.lists(st.tuples(WORDS, FACTS, st.none() | WORDS, st.none() | FACTS), min_size=1, max_size=6))
def test_files_equal_the_reference(rows):
    gold = [{"_id": str(i), "answer": a, "supporting_facts": sp} for i, (a, sp, _, _) in enumerate(rows)]
    predictions = {
        "answer": {str(i): p for i, (_, _, p, _) in enumerate(rows) if p is not None},
        "sp": {str(i): [list(x) for x in p] for i, (_, _, _, p) in enumerate(rows) if p is not None},
    }
    questions = [Question(row["_id"], "?", (row["answer"],)) for row in gold]
    ours = score_predictions(questions, predictions, {row["_id"]: row["supporting_facts"] for row in gold})
    expected = reference_evaluation(gold, predictions)
    for name in ("em", "f1", "prec", "recall"):
        assert ours[name] == pytest.approx(expected.get(name, 0.0))
        if predictions["sp"]:
            assert ours["sp_" + name] == pytest.approx(expected.get("sp_" + name, 0.0))
            assert ours["joint_" + name] == pytest.approx(expected.get("joint_" + name, 0.0))
    assert ours["n"] == len(rows) and ours["missing"] == len(rows) - len(predictions["answer"])


@pytest.mark.parametrize(
    ("prediction", "answer", "em", "score"),
    [
        ("The Oslo!", "oslo", 1, 1),
        ("Oslo, Norway", "Oslo", 0, 2 / 3),
        ("yes", "Yes.", 1, 1),
        ("yes it is", "yes", 0, 0),
        ("no", "yes", 0, 0),
        ("yes", "yes sir", 0, 0),
        ("noanswer", "no answer", 0, 0),
        ("", "Oslo", 0, 0),
        ("the", "a", 1, 0),
    ],
)
def test_known_cases(prediction, answer, em, score):
    assert exact_match(prediction, [answer]) == em
    assert f1(prediction, [answer]) == pytest.approx(score)


def test_no_answer_is_zero_and_the_best_alias_counts():
    assert exact_match(None, ["x"]) == f1(None, ["x"]) == 0.0
    assert exact_match("NYC", ["New York", "NYC"]) == 1.0
    assert f1("New York City", ["NYC", "New York"]) == pytest.approx(0.8)
    assert exact_match("x", []) == f1("x", []) == 0.0


def test_supporting_facts_are_scored_only_where_predicted_and_known():
    questions = [Question("1", "?", ("x",)), Question("2", "?", ("y", "z"))]
    answers = {"answer": {"1": "x", "2": "z"}}
    facts = {"1": (("A", 0),)}
    assert score_predictions(questions, answers, facts) == {
        "em": 1.0,
        "f1": 1.0,
        "prec": 1.0,
        "recall": 1.0,
        "n": 2,
        "missing": 0,
    }
    assert "sp_em" not in score_predictions(questions, {**answers, "sp": {"1": [["A", 0]]}})
    assert score_predictions(questions, {**answers, "sp": {"1": [["A", 0]]}}, facts)["joint_em"] == 0.5


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ({"answers": {}}, "rename 'answers' to it"),
        ({}, 'no "answer"'),
        ({"answer": ["x"]}, 'no "answer"'),
        ({"answer": {"1": 3}}, "predicted for 1 is not a string"),
        ({"answer": {}, "sp": {"1": [["A"]]}}, '"sp" is not'),
        ({"answer": {}, "sp": [1]}, '"sp" is not'),
    ],
)
def test_another_layout_is_refused(predictions, message):
    with pytest.raises(DataError) as error:
        score_predictions([Question("1", "?", ("x",))], predictions)
    assert message in str(error.value)
    with pytest.raises(DataError, match="no questions"):
        score_predictions([], {"answer": {}})
