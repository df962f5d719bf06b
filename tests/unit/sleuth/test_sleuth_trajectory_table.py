"""A closed run's trajectories: Parquet gives back equal objects, and other programs read it."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sleuth_trajectories import example, scored

from sleuth.errors import DataError
from sleuth.trajectories import CLOSED, TrajectoryWriter, close_trajectories, read_trajectories, to_line
from sleuth.trajectory_table import ROWS_IN_GROUP
from sleuth.types import Origin, ScoredTrajectory


def write_lines(path: Path, rows: list[ScoredTrajectory]) -> None:
    with TrajectoryWriter(path) as writer:
        for row in rows:
            writer.write(row)


@settings(max_examples=40, deadline=None)
@given(st.lists(scored, min_size=1, max_size=4))
def test_both_forms_give_the_same_objects_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[ScoredTrajectory]
) -> None:
    folder = tmp_path_factory.mktemp("t")
    write_lines(folder / "trajectories.jsonl", rows)
    growing = list(read_trajectories(folder))
    closed = close_trajectories(folder)
    assert closed == folder / CLOSED
    assert [path.name for path in folder.iterdir()] == [CLOSED]
    assert growing == rows == list(read_trajectories(closed)) == list(read_trajectories(folder))


def test_datasets_reads_a_closed_run(tmp_path: Path) -> None:
    from datasets import load_dataset

    row = example()
    moved = ScoredTrajectory(row.trajectory, None, row.parts, Origin(7, 2, -0.5, (-0.25, -0.75)), (1.0, None))
    write_lines(tmp_path / "step-000007-0.jsonl", [row, moved])
    file = close_trajectories(tmp_path)
    data = load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.num_rows == 2
    assert data[0]["token_ids"] == row.trajectory.token_ids
    assert data[0]["policy_mask"] == row.trajectory.policy_mask == [0, 0, 0, 1, 1]
    assert data[0]["logprobs"] == [0.0, 0.0, 0.0, -0.1, -0.2]
    assert data[0]["question"]["answers"] == ["x"]
    assert data[0]["turns"][0]["action"] == {"kind": "answer", "text": "x", "queries": None, "tool": None}
    assert data[1]["origin"] == {"step": 7, "group": 2, "advantage": -0.5, "advantages": [-0.25, -0.75]}
    assert (data[0]["turn_scores"], data[1]["turn_scores"]) == (None, [1.0, None])
    assert (data[0]["reward"], data[1]["reward"]) == (0.5, None)


def test_a_run_that_was_closed_before_failures_were_kept_still_opens(tmp_path: Path) -> None:
    write_lines(tmp_path / "trajectories.jsonl", [example()])
    file = close_trajectories(tmp_path)
    pq.write_table(pq.read_table(file).drop_columns(["failure"]), file)
    assert list(read_trajectories(tmp_path)) == [example()]


def test_steps_are_joined_in_order_and_more_than_one_group_of_rows(tmp_path: Path) -> None:
    for step in (10, 2, 0):
        rows = [example(f"{step}-{i}") for i in range(ROWS_IN_GROUP // 2)]
        write_lines(tmp_path / f"step-{step:06d}-0.jsonl", rows)
    before = [row.trajectory.question.id for row in read_trajectories(tmp_path)]
    close_trajectories(tmp_path)
    assert [row.trajectory.question.id for row in read_trajectories(tmp_path)] == before
    assert before[0] == "0-0"
    assert before[-1] == f"10-{ROWS_IN_GROUP // 2 - 1}"


def test_closing_twice_or_after_a_crash_between_changes_nothing(tmp_path: Path) -> None:
    write_lines(tmp_path / "trajectories.jsonl", [example("a"), example("b")])
    close_trajectories(tmp_path)
    (tmp_path / "trajectories.jsonl").write_text(to_line(example("a")))  # as if killed while lines were deleted
    assert len(list(read_trajectories(tmp_path))) == 2
    assert close_trajectories(tmp_path) == tmp_path / CLOSED
    assert len(list(read_trajectories(tmp_path))) == 2
    assert not (tmp_path / "trajectories.jsonl").exists()


def test_a_folder_without_trajectories_closes_to_nothing_and_keeps_its_files(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text("{}\n")
    assert close_trajectories(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["questions.jsonl"]
    assert list(read_trajectories(tmp_path)) == []


def test_a_broken_line_leaves_the_lines_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "trajectories.jsonl").write_text(to_line(example()) + "{}\n")
    with pytest.raises(DataError, match="line 2"):
        close_trajectories(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["trajectories.jsonl"]


@pytest.mark.parametrize(("content", "said"), [(b"PAR1 not really", "not a Parquet file"), (None, "cannot read")])
def test_what_is_no_table_is_said_in_one_line(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "x.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        list(read_trajectories(path))


def test_a_table_of_something_else_is_said(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="no column 'question'"):
        list(read_trajectories(tmp_path / "x.parquet"))


def test_a_closed_run_from_before_questions_named_their_file_opens(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_lines(tmp_path / "trajectories.jsonl", [example()])
    closed = close_trajectories(tmp_path)
    assert closed is not None
    table = pq.read_table(closed)
    question = table.column("question").combine_chunks()
    known = {"id", "text", "answers", "supporting_titles", "kind"}
    kept = [field for field in question.type if field.name in known]
    assert len(kept) == 5 < len(list(question.type))
    older = pa.StructArray.from_arrays([question.field(field.name) for field in kept], fields=kept)
    pq.write_table(table.set_column(table.schema.get_field_index("question"), "question", older), closed)
    (row,) = read_trajectories(closed)
    assert row == example()
    assert row.trajectory.question.file == ""


def test_a_closed_run_from_before_turns_were_judged_opens(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = example()
    moved = ScoredTrajectory(row.trajectory, 0.5, row.parts, Origin(7, 2, -0.5, (-0.5,)), (1.0,))
    write_lines(tmp_path / "trajectories.jsonl", [moved])
    closed = close_trajectories(tmp_path)
    assert closed is not None
    table = pq.read_table(closed)
    origin = table.column("origin").combine_chunks()
    kept = [field for field in origin.type if field.name != "advantages"]
    assert len(kept) == 3
    older = pa.StructArray.from_arrays([origin.field(field.name) for field in kept], fields=kept)
    table = table.set_column(table.schema.get_field_index("origin"), "origin", older).drop(["turn_scores"])
    pq.write_table(table, closed)
    assert list(read_trajectories(closed)) == [ScoredTrajectory(row.trajectory, 0.5, row.parts, Origin(7, 2, -0.5))]
