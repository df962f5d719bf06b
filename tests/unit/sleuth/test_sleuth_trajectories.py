"""Trajectories survive the way to disk and back, and a file cut by a crash can be continued."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleuth.errors import DataError
from sleuth.trajectories import TrajectoryWriter, from_dict, read_trajectories, to_dict
from sleuth.types import (
    Answer,
    Call,
    Failure,
    Generation,
    Hit,
    Invalid,
    Origin,
    Passage,
    Question,
    ScoredTrajectory,
    Search,
    Segment,
    SolvedStep,
    Trajectory,
    Turn,
)

# Lone surrogates too: "\ud800" is legal in JSON, so a question file can hold one.
texts = st.text(alphabet=st.characters(codec=None, categories=None), max_size=12)
floats = st.floats(allow_nan=False)
tokens = st.lists(st.integers(0, 2**31), max_size=5).map(tuple)
some = st.lists(texts, max_size=2).map(tuple)
steps = st.lists(st.builds(SolvedStep, texts, texts), max_size=2).map(tuple)
questions = st.builds(
    Question, texts, texts, some, some, texts, pack=texts, gold_ids=some, alternatives=st.booleans(), steps=steps
)
hits = st.builds(Hit, st.builds(Passage, texts, texts, texts), floats, st.integers(1, 100))
logprobs = st.lists(floats, max_size=5).map(tuple)
generations = st.builds(Generation, tokens, logprobs, st.sampled_from(["stop", "eos", "length"]), st.integers(0, 9))
arguments = st.dictionaries(texts, st.none() | st.booleans() | st.integers() | texts | st.lists(texts, max_size=2))
searches = st.lists(texts, min_size=1, max_size=3).map(lambda queries: Search(*queries))
actions = st.one_of(searches, st.builds(Call, texts, arguments), st.builds(Answer, texts), st.builds(Invalid, texts))
counts = st.lists(st.integers(0, 3), max_size=2).map(tuple)
turns = st.builds(
    Turn, generations, texts, actions, st.lists(hits, max_size=2).map(tuple), texts, st.booleans(), counts, texts
)
segments = st.builds(Segment, st.sampled_from(["prompt", "policy", "environment"]), tokens, logprobs)
stops = st.sampled_from(
    ["answer", "turn_budget", "token_budget", "prompt_too_long", "retriever_failed", "environment_failed"]
)
trajectories = st.builds(
    Trajectory,
    questions,
    st.lists(segments, max_size=4).map(tuple),
    st.lists(turns, max_size=3).map(tuple),
    stops,
    st.dictionaries(texts, floats, max_size=3),
    st.lists(hits, max_size=1).map(tuple),
    st.none() | st.builds(Failure, texts, texts, texts),
)
values = st.lists(floats, max_size=3).map(tuple)
origins = st.builds(Origin, st.integers(0, 9), st.integers(0, 9), st.none() | floats, st.none() | values)
parts = st.dictionaries(texts, st.none() | floats, max_size=3)
turn_scores = st.none() | st.lists(st.none() | floats, max_size=3).map(tuple)
scored = st.builds(ScoredTrajectory, trajectories, st.none() | floats, parts, st.none() | origins, turn_scores)


def example(identity: str = "q1", reward: float | None = 0.5) -> ScoredTrajectory:
    generation = Generation((5, 6), (-0.1, -0.2), "stop", 3)
    turn = Turn(generation, "<answer>x</answer>", Answer("x"))
    segments = (Segment("prompt", (1, 2, 3)), Segment("policy", (5, 6), (-0.1, -0.2)))
    question = Question(identity, "Who?", ("x",), ("T",), "bridge")
    return ScoredTrajectory(Trajectory(question, segments, (turn,), "answer", {"generate": 0.25}), reward, {"em": 1.0})


@given(scored)
def test_round_trip_through_json_loses_nothing(row: ScoredTrajectory) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(row)))) == row


@given(st.lists(scored, max_size=4))
def test_round_trip_through_a_file(tmp_path_factory: pytest.TempPathFactory, rows: list[ScoredTrajectory]) -> None:
    path = tmp_path_factory.mktemp("t") / "trajectories.jsonl"
    with TrajectoryWriter(path) as writer:
        for row in rows:
            writer.write(row)
    assert list(read_trajectories(path)) == rows


def test_rows_are_on_disk_before_the_writer_is_closed(tmp_path: Path) -> None:
    writer = TrajectoryWriter(tmp_path / "t.jsonl")
    writer.write(example())
    assert list(read_trajectories(tmp_path / "t.jsonl")) == [example()]
    writer.close()


@pytest.mark.parametrize("torn", ['{"traj', "x" * 200_000])
def test_reopening_drops_a_torn_last_line_and_nothing_else(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "t.jsonl"
    with TrajectoryWriter(path) as writer:
        writer.write(example("a"))
    with path.open("a", encoding="utf-8") as file:
        file.write(torn)
    with pytest.raises(DataError, match="line 2: not valid JSON"):
        list(read_trajectories(path))
    with TrajectoryWriter(path) as writer:
        writer.write(example("b"))
    assert [row.trajectory.question.id for row in read_trajectories(path)] == ["a", "b"]


def test_a_file_that_is_one_torn_line_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"trajec', encoding="utf-8")
    with TrajectoryWriter(path) as writer:
        writer.write(example())
    assert list(read_trajectories(path)) == [example()]


def test_faults_name_the_line_and_the_field(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    broken = to_dict(example())
    broken["trajectory"]["stop"] = "tired"
    path.write_text("\n".join([json.dumps(to_dict(example())), "", json.dumps(broken)]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"t\.jsonl, line 3: not a trajectory: trajectory\.stop"):
        list(read_trajectories(path))


@pytest.mark.parametrize("row", ["[1]", "3", '{"reward": 1}', "{}", '{"trajectory": null, "reward": 1}'])
def test_rows_of_another_shape_are_refused(tmp_path: Path, row: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(row + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1"):
        list(read_trajectories(path))


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*nothing\.jsonl: No such file"):
        list(read_trajectories(tmp_path / "nothing.jsonl"))


@pytest.mark.parametrize("file", ["of_one_query.jsonl", "of_one_query.parquet"])
def test_files_of_before_a_search_had_several_queries_open(file: str) -> None:
    (row,) = read_trajectories(Path(__file__).parents[2] / "golden" / "trajectories" / file)
    played = row.trajectory
    assert played.turns[0].action == Search("author; of: Peer Gynt")
    assert [hit.passage.id for hit in dict(played.turns[0].found)["author; of: Peer Gynt"]] == ["p1", "p2"]
    assert [type(turn.action) for turn in played.turns] == [Search, Invalid, Answer]
    assert (played.queries, played.calls, played.answer) == (["author; of: Peer Gynt"], [], "Skien")
    assert (row.reward, row.origin) == (1.0, Origin(4, 2, 0.5))


def test_every_query_of_a_turn_has_its_own_hits() -> None:
    found = tuple(Hit(Passage(name, name, ""), 1.0, 1) for name in "abc")
    turn = Turn(Generation((1,), (0.0,), "eos"), "", Search("x", "y", "z"), found, hits_per_query=(2, 0, 1))
    assert turn.found == [("x", found[:2]), ("y", ()), ("z", found[2:])]
    assert Turn(Generation((1,), (0.0,), "eos"), "", Answer("x")).found == []
