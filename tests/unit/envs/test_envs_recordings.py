"""Runs of others are read in three layouts, and those that cannot be learned from say why."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.recordings import NO_SEARCH, WRONG, read_recordings
from sleuth.errors import DataError
from sleuth.evidence import has_answer, informative_answers
from sleuth.types import Passage, PlanStep

ROW = {"id": "r1", "question": "Where was Ibsen born?", "golden_answers": ["Skien"], "metadata": {"reward": True}}
TAGGED = (
    "<think> Look. </think>\n<search> Ibsen </search>\n<information> Born in Skien. </information>\n"
    "<think> Found. </think>\n<answer> Skien </answer>"
)
REACT = [
    {"role": "user", "content": "Where was Ibsen born?"},
    {"role": "assistant", "content": "Thought: Look.\nAction: search[Ibsen]"},
    {"role": "user", "content": "Observation: Born in Skien."},
    {"role": "assistant", "content": "Thought: Found.\nAction: finish[Skien]"},
    {"role": "user", "content": "Observation: Episode finished, reward = True"},
]
CHAT = [
    {"role": "system", "content": "Search."},
    {"role": "user", "content": "Where was Ibsen born?"},
    {"role": "assistant", "content": "<think>Look.</think><search>Ibsen</search>"},
    {"role": "tool", "content": "<information>Born in Skien.</information>"},
    {"role": "assistant", "content": "<think>Found.</think><answer>Skien</answer>"},
]
TURNS = [
    {"think": "Look.", "search": "Ibsen", "information": "Born in Skien."},
    {"think": "Found.", "answer": "Skien"},
]


def read(tmp_path, *rows):
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_recordings(path)


@pytest.mark.parametrize("run", [{"tagged": TAGGED}, {"messages": REACT}, {"messages": CHAT}, {"turns": TURNS}])
def test_every_layout_is_the_same_run(tmp_path, run):
    (recording,) = read(tmp_path, ROW | run)
    assert recording.dropped == ""
    assert recording.plan.steps == (PlanStep("Look.", "Ibsen"),)
    assert (recording.plan.think, recording.plan.answer) == ("Found.", "Skien")
    assert recording.observations == ((Passage("r1/1", "", "Born in Skien."),),)


def test_a_chat_tells_its_question_and_its_reward(tmp_path):
    (recording,) = read(tmp_path, {"id": "r", "messages": REACT})
    assert (recording.question.text, recording.question.answers) == ("Where was Ibsen born?", ("Skien",))
    lost = [*REACT[:-1], {"role": "user", "content": "Observation: Episode finished, reward = False"}]
    assert read(tmp_path, {"id": "r", "messages": lost})[0].dropped == WRONG


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"metadata": {"reward": False}}, WRONG),
        ({"metadata": {}, "golden_answers": ["Oslo"]}, WRONG),
        ({"metadata": {}, "golden_answers": ["skien"]}, ""),
        ({"reward": 0.4}, WRONG),
        ({"turns": TURNS[1:]}, NO_SEARCH),
        ({"turns": TURNS[:1]}, "it ends without an answer"),
        ({"turns": [{"think": "Hm."}, *TURNS]}, "a turn neither searched nor answered"),
        ({"tagged": f"{TAGGED} <search> more </search>", "turns": None}, "it ends without an answer"),
        ({"tagged": TAGGED.replace("<search>", "Now: <search>"), "turns": None}, "it ends without an answer"),
        (
            {"turns": None, "messages": [{"role": "assistant", "content": "Action: lookup[x]"}, *REACT[1:]]},
            "a turn neither searched nor answered",
        ),
    ],
)
def test_what_cannot_be_learned_from_says_why(tmp_path, row, why):
    whole = {name: value for name, value in (ROW | {"turns": TURNS} | row).items() if value is not None}
    assert read(tmp_path, whole)[0].dropped == why


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "not a run: it has none of turns, messages, tagged"),
        ({"messages": [*REACT, {"role": "critic", "content": "x"}]}, "message 6 has the role 'critic'"),
        ({"messages": [{"role": "user"}]}, "message 1 has no role and content"),
        ({"messages": "x"}, "'messages' is not a list"),
        ({"tagged": 3}, "'tagged' is not a text"),
        ({"turns": [{"search": 3}]}, "turn 1 is not an object of texts"),
        ({"turns": TURNS, "reward": "yes"}, "'reward' is neither"),
        ({"turns": TURNS, "golden_answers": None, "metadata": {}}, "neither 'golden_answers' nor a reward"),
    ],
)
def test_a_row_that_is_no_run_is_named(tmp_path, row, message):
    broken = {name: value for name, value in (ROW | row).items() if value is not None}
    with pytest.raises(DataError, match=r"runs\.jsonl, line 2: ") as caught:
        read(tmp_path, ROW | {"id": "r0", "turns": TURNS}, broken)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "seen", ["[1] Ibsen\nBorn in Skien.\n\n[2] \nText.", 'Doc 1(Title: "Ibsen") Born in Skien.\nDoc 2(Title: "") Text.']
)
def test_blocks_of_passages_are_taken_apart(tmp_path, seen):
    (recording,) = read(tmp_path, ROW | {"turns": [TURNS[0] | {"information": seen}, TURNS[1]]})
    assert [(p.title, p.text) for p in recording.observations[0]] == [("Ibsen", "Born in Skien."), ("", "Text.")]


TEXT = st.text(st.characters(blacklist_characters="<>", blacklist_categories=["Cs"]), min_size=1, max_size=20)
SAID = TEXT.filter(str.strip)


@given(st.lists(st.tuples(TEXT, SAID, TEXT), min_size=1, max_size=3), SAID)
def test_tagged_text_is_read_back(tmp_path_factory, turns, answer):
    run = "".join(
        f"<think>{think}</think>\n<search>{query}</search>\n<information>{seen}</information>\n"
        for think, query, seen in turns
    )
    row = ROW | {"tagged": f"{run}<answer>{answer}</answer>"}
    (recording,) = read(tmp_path_factory.mktemp("runs"), row)
    assert recording.dropped == ""
    assert [step.query for step in recording.plan.steps] == [" ".join(query.split()) for _, query, _ in turns]
    assert recording.plan.answer == " ".join(answer.split())


PIECES = st.sampled_from(
    ["<think>", "</think>", "<search>", "</search>", "<information>", "</information>", "<answer>"]
)


@given(st.lists(PIECES | st.sampled_from(["<answer>", "</answer>"]) | st.text(max_size=5), max_size=12).map("".join))
def test_any_tagged_text_is_a_run_or_says_why_not(tmp_path_factory, text):
    (recording,) = read(tmp_path_factory.mktemp("runs"), ROW | {"tagged": text})
    if not recording.dropped:
        assert recording.plan.answer and all(step.query for step in recording.plan.steps)
        assert len(recording.observations) == len(recording.plan.steps) > 0


DATA = os.environ.get("SLEUTH_DATA")


@pytest.mark.data
@pytest.mark.skipif(not DATA, reason="SLEUTH_DATA is not set")
def test_real_runs_are_read_in_both_of_their_layouts(tmp_path):
    source = Path(DATA) / "trajectories" / "fireact_gpt4_react.jsonl"
    chats = read_recordings(source)
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    tagged = read(tmp_path, *({k: v for k, v in row.items() if k != "messages"} for row in rows))
    assert [run.plan.steps for run in chats] == [run.plan.steps for run in tagged]
    assert Counter(run.dropped for run in chats) == {"": 499, NO_SEARCH: 1}
    usable = [run for run in chats if not run.dropped and informative_answers(run.question.answers)]
    seen = ["\n".join(p.text for found in run.observations for p in found) for run in usable]
    read_ = [has_answer(text, run.question.answers) for text, run in zip(seen, usable, strict=True)]
    assert (len(usable), sum(read_)) == (457, 396)
