"""What a retriever reads of a search, in each form."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sleuth.query_forms import LONGEST_THOUGHT, form_of, last_thought, query_of, written


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("query", "Gesu"),
        ("question_query", "Gesu | Who founded Gesu?"),
        ("thought_query", "Gesu | the founder is needed"),
    ],
)
def test_a_query_stands_first_and_its_context_behind_it(form, expected):
    text = written(form, "Gesu", "Who founded\n Gesu?", "the founder is needed")
    assert (text, query_of(text)) == (expected, "Gesu")


def test_a_query_without_context_is_written_alone_in_every_form():
    assert written("thought_query", "Gesu", question="Who founded Gesu?") == "Gesu"
    assert written("question_query", "Who founded Gesu?", "Who  founded Gesu?") == "Who founded Gesu?"


def test_a_thought_is_what_a_turn_says_before_it_acts():
    assert last_thought("<think> it is Gesu </think>\n<search> Gesu </search>") == "it is Gesu"
    assert last_thought("I look. <tool_call>{...}</tool_call>") == "I look."
    assert last_thought("<think> <search> would help </think> <search> x </search>") == "would help"
    assert last_thought("<search> x </search>") == ""


def test_of_a_long_thought_the_end_is_read():
    turn = " ".join(f"w{i}" for i in range(100)) + " <search> x </search>"
    kept = last_thought(turn).split()
    assert len(kept) == LONGEST_THOUGHT
    assert kept[-1] == "w99"


def test_a_retriever_that_does_not_say_reads_the_query_alone():
    assert form_of(object()) == "query"
    assert form_of(SimpleNamespace(query_form="thought_query")) == "thought_query"
