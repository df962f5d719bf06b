"""``sleuth cotrain``: what it prints, and what it refuses in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from test_cli_faults import fails

from cli.cotrain import lines_of
from cli.main import main
from workflows.config import load_run_settings

CONFIG = Path(__file__).parents[3] / "configs" / "cotrain_world.yaml"
CHANGE = {"n": 6, "difference": 0.125, "low": 0.0625, "high": 0.25}


def test_a_dry_run_prints_the_whole_config(capsys: pytest.CaptureFixture[str]):
    main_exits(["cotrain", str(CONFIG), "--dry-run", "--out", "runs/elsewhere"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["cotrain"]["labels"]["kind"] == "outcomes"
    assert printed["retriever"]["index"] == "runs/elsewhere/retriever-0/index"


def main_exits(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code in (0, None)


def test_train_does_not_pass_over_the_section_in_silence(capsys: pytest.CaptureFixture[str]):
    said = fails(capsys, "train", str(CONFIG))
    assert "describes co-training, of which this is a part (run: sleuth cotrain" in said


def test_other_commands_read_the_rest_of_the_config_as_a_run():
    assert load_run_settings(CONFIG).grpo is not None


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("cotrain.round=3", "did you mean 'rounds'"),
        ("cotrain.labels.kind=outcome", "did you mean 'outcomes'"),
        ("cotrain.query_form=question", "cotrain.query_form"),
        ("cotrain.group_size=1", "cotrain.group_size"),
        ("cotrain.start.out=elsewhere", "out does nothing in cotrain.start, which is a part of the run"),
        ("retriever={kind: bm25, index: x}", "0 parts of the kind index of encoded passages"),
    ],
)
def test_a_mistake_in_the_config_ends_in_one_line(capsys: pytest.CaptureFixture[str], setting: str, said: str):
    assert said in fails(capsys, "cotrain", str(CONFIG), "--set", setting)


def test_a_folder_of_something_else_is_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    shutil.copy(CONFIG, tmp_path / "mine.yaml")
    said = fails(capsys, "cotrain", str(CONFIG), "--out", str(tmp_path))
    assert "is not empty and is not a Sleuth run" in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_round_is_told_with_its_differences_and_what_was_not_swapped_in():
    start = {"round": 0, "after": {"agent": {"means": {"em": 0.25}}}}
    after = {
        "agent": {"means": {"em": 0.375, "gold_recall": 0.5}, "to_before": {**CHANGE, "gold_recall": CHANGE}},
        "retriever": {"k": 5, "recall": 0.75, "to_before": {**CHANGE, "before": 0.625}},
    }
    first = {"round": 1, "rows": {"rows": 12, "precision": 0.5}, "guard": {"swapped": False}, "after": after}
    assert lines_of([start, first]) == [
        "round 0: EM 0.250",
        "round 1: EM 0.375 (+0.125 [+0.062, +0.250]); gold recall 0.500 (+0.125 [+0.062, +0.250]); "
        "recall@5 0.750 (+0.125 [+0.062, +0.250]); 12 rows, precision 0.50; "
        "the new retriever was worse and not swapped in",
    ]
