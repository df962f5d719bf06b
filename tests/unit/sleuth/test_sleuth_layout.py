"""Where everything of a run lies, and its records, old ones too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sleuth.errors import ArtifactError
from sleuth.layout import (
    EvaluationLayout,
    GrpoLayout,
    GrpoOutcome,
    RetrieverRunLayout,
    RunLayout,
    read_record,
    write_record,
)


def test_the_last_policy_is_that_of_the_latest_stage_which_made_one(tmp_path: Path):
    layout = RunLayout(tmp_path)
    assert layout.last_policy() is None
    for stage in ("policy", "warmstart", "grpo"):
        made = layout.policy_of(stage)
        assert made is not None
        made.mkdir(parents=True)
        assert layout.last_policy() == made
    assert layout.last_policy("demonstrate") == layout.start
    assert layout.last_policy("warmstart") == layout.warmstart
    assert [path.relative_to(tmp_path).as_posix() for path in layout.policies()] == [
        "grpo/policy",
        "warmstart",
        "start",
    ]


@pytest.mark.parametrize("best", [0.5, None])
def test_an_outcome_is_read_as_it_was_written(tmp_path: Path, best: float | None):
    layout = GrpoLayout(tmp_path)
    assert GrpoOutcome.read(layout) is None
    GrpoOutcome(3, best, 4).write(layout)
    assert GrpoOutcome.read(layout) == GrpoOutcome(3, best, 4)


def test_an_outcome_that_learners_on_a_cluster_once_wrote_is_read(tmp_path: Path):
    old = {"policy": "/gone/policy", "best_step": 3, "best_em": 0.5, "last_step": 4}
    (tmp_path / "outcome.json").write_text(json.dumps(old) + "\n")
    assert GrpoOutcome.read(GrpoLayout(tmp_path)) == GrpoOutcome(3, 0.5, 4)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"best_step": "x", "best_em": 1, "last_step": 2}'])
def test_a_damaged_outcome_is_told_in_one_line(tmp_path: Path, text: str):
    (tmp_path / "outcome.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"outcome\.json is damaged"):
        GrpoOutcome.read(GrpoLayout(tmp_path))


def test_samples_of_an_evaluation_lie_apart_unless_there_is_one(tmp_path: Path):
    one = RunLayout(tmp_path).evaluation("grpo", "search")
    assert one.samples(1) == [one]
    assert [part.trajectories.relative_to(one.folder).as_posix() for part in one.samples(2)] == [
        "sample-1/trajectories.jsonl",
        "sample-2/trajectories.jsonl",
    ]


def test_samples_and_rounds_come_by_number(tmp_path: Path):
    evaluation, run = EvaluationLayout(tmp_path), RetrieverRunLayout(tmp_path)
    for number in (10, 2, 1):
        for part in (evaluation.samples(10)[number - 1], run.round(number)):
            part.folder.mkdir()
    assert evaluation.existing_samples() == [evaluation.samples(10)[number - 1] for number in (1, 2, 10)]
    assert run.rounds() == [run.round(number) for number in (1, 2, 10)]


def test_a_record_is_a_mapping_or_nothing(tmp_path: Path):
    assert read_record(tmp_path / "none.json") is None
    write_record(tmp_path / "a.json", {"x": 1})
    assert read_record(tmp_path / "a.json") == {"x": 1}
