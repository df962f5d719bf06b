"""What counts as an answer in a passage, and what as a title that a question names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleuth.evidence import (
    contains_answer,
    golds_of,
    has_answer,
    informative_answers,
    mentions_answer,
    normalise_title,
    parent_id,
    titles_found,
    tokens,
    window_id,
)
from sleuth.types import Hit, Passage, Question


def test_tokens_as_dpr_makes_them() -> None:
    assert tokens("Beyoncé's 2nd (A_b)") == ["beyonce\u0301", "'", "s", "2nd", "(", "a", "_", "b", ")"]
    assert tokens(" \u200b\n") == []


@pytest.mark.parametrize(
    ("text", "answers", "held"),
    [
        ("The party began.", ["art"], False),
        ("Modern ART, in Paris", ["art"], True),
        ("It was born in Skien, Norway.", ["SKIEN"], True),
        ("born in New  York, U.S.", ["new york"], True),
        ("born in New York", ["York New"], False),
        ("On 5 May 1905 he", ["May 1905"], True),
        ("On May 3, 1905", ["May 1905"], False),
        ("the U.S. army", ["U.S."], True),
        ("Café Noir", ["cafe\u0301 noir"], True),
        ("Cafe\u0301 Müller", ["CAFÉ"], True),
        ("Café Müller", ["cafe\u0301 muller"], False),
        ("Cafe Noir", ["café"], False),
        ("soft\u00adware of कि", ["software"], False),
        ("soft\u00adware of कि", ["soft ware"], True),
        ("कि", ["क"], False),
        ("北京市", ["北京市"], True),
        ("text", [""], False),
        ("text", [" ", "\u200b"], False),
        ("text", [], False),
        ("", ["a"], False),
        ("", [""], False),
        ("x", ["absent", "X"], True),
    ],
)
def test_has_answer(text: str, answers: list[str], held: bool) -> None:
    assert has_answer(text, answers) is held


@given(st.lists(st.sampled_from("ab ."), max_size=12), st.lists(st.sampled_from("ab."), min_size=1, max_size=4))
def test_an_answer_is_held_when_its_tokens_stand_side_by_side(text: list[str], answer: list[str]) -> None:
    haystack, needle = tokens("".join(text)), tokens("".join(answer))
    windows = [haystack[i : i + len(needle)] for i in range(len(haystack) - len(needle) + 1)]
    assert has_answer("".join(text), ["".join(answer)]) == (needle in windows)


def test_verdicts_tell_nothing() -> None:
    assert informative_answers(["Yes.", "NO", "true", "False ", "noanswer", "No Doubt", "Oslo"]) == ["No Doubt", "Oslo"]
    assert informative_answers(["yes!", "“No”", "'true'", "Yes\u200b", "N.O.", "No. 5", "Noé", "", " "]) == [
        "N.O.",
        "No. 5",
        "Noé",
    ]
    assert not contains_answer(Passage("p", "T", "yes it is"), ["Yes."])
    assert not mentions_answer(Passage("p", "Yes", "yes it is"), ["yes"])


@pytest.mark.parametrize(
    ("title", "text", "tells", "mentions"),
    [
        ("Ibsen", "born in Skien", True, True),
        ("Skien", "a town", False, True),
        ("Ski", "en route", False, False),
        ("South", "Skien lies by a lake", True, True),
    ],
)
def test_a_title_alone_tells_no_answer_but_mentions_it(title: str, text: str, tells: bool, mentions: bool) -> None:
    passage = Passage("p", title, text)
    assert contains_answer(passage, ["Oslo", "Skien"]) is tells
    assert mentions_answer(passage, ["Oslo", "Skien"]) is mentions


def test_no_answer_begins_in_the_title_and_ends_in_the_text() -> None:
    assert not mentions_answer(Passage("p", "New York", "Times have changed"), ["New York Times"])


@given(st.text(max_size=8), st.integers(0, 10**6))
def test_a_window_names_its_passage_whatever_the_passage_is_called(name: str, number: int) -> None:
    passage = name or "p"
    assert parent_id(window_id(passage, number)) == passage
    assert parent_id(parent_id(window_id(window_id(passage, 0), number))) == passage


@pytest.mark.parametrize(
    "name", ["", "doc", "doc::3", "a::b", "doc::w", "doc::wide", "doc::w3 ", "::w3", "doc::w²", "w3"]
)
def test_other_ids_name_no_passage_but_their_own(name: str) -> None:
    assert parent_id(name) == name


def test_titles_are_equal_in_spite_of_spelling() -> None:
    assert normalise_title("Cafe\u0301_Müller ") == normalise_title("café  müller")
    assert normalise_title("Oslo (city)") != normalise_title("Oslo")


def test_an_id_that_only_looks_like_a_window_is_gold_by_itself_alone() -> None:
    """``doc::w3`` is listed as it stands, so that ``doc`` and its other windows are something else."""
    golds = golds_of(Question("q", "?", ("x",), ("T",), gold_ids=("doc::w3", "one")))
    passages = [Passage(name, "T", "") for name in ("doc::w3", "doc::w3::w0", "doc", "doc::w4", "one::w0", "none")]
    assert [golds.of(passage) for passage in passages] == ["doc::w3", "doc::w3", None, None, "one", None]
    assert not golds_of(Question("q", "?", ("x",), ("T",)), "id")


def test_titles_are_found_once_each() -> None:
    question = Question("q", "?", ("x",), ("Peer Gynt", "peer_gynt", "Henrik Ibsen"))
    hits = [Hit(Passage(str(i), title, ""), 1.0, i) for i, title in enumerate(("PEER GYNT", "Peer Gynt", "Oslo"))]
    assert titles_found(question, hits) == (1, 2)
    assert titles_found(Question("q", "?", ("x",)), hits) == (0, 0)
