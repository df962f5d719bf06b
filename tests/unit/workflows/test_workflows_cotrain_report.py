"""What the report shows of co-training."""

from __future__ import annotations

from pathlib import Path

import yaml

from sleuth.cotrain_layout import CotrainLayout
from sleuth.layout import write_record
from workflows.report.collect import read_run
from workflows.report.compact import pack, unpack

CHANGE = {"difference": 0.2, "low": 0.1, "high": 0.3, "n": 6}
START = {"round": 0, "after": {"fingerprint": "a", "agent": {"means": {"em": 0.25}}}}
FIRST = {
    "round": 1,
    "rows": {
        "rows": 1200,
        "precision": 0.8125,
        "asked": {"queries": 9, "distinct": 1.5, "copied": 0.0, "repeated": 0.1},
    },
    "guard": {"swapped": False, "n": 6, "before": 0.5, "after": 0.25},
    "after": {
        "fingerprint": "a",
        "agent": {"means": {"em": 0.45, "gold_recall": 0.5}, "to_before": {**CHANGE, "gold_recall": CHANGE}},
        "retriever": {"recall": 0.75, "to_before": CHANGE},
    },
}


def run_of(folder: Path, rounds: int, done: list) -> Path:
    (folder / "stages").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"cotrain": {"rounds": rounds}, "grpo": {"steps": 1}}))
    layout = CotrainLayout(folder)
    write_record(layout.rounds, {"rounds": done})
    layout.round(1).evaluation("test").folder.mkdir(parents=True)
    write_record(layout.round(1).evaluation("test").metrics, {"em": 0.45, "n": 6})
    return folder


def test_every_round_has_a_line_with_what_changed_and_why(tmp_path: Path):
    run = read_run(run_of(tmp_path / "run", 1, [START, FIRST]), "run")
    assert run.finished
    start, first = unpack(pack([run], [], 10**6))["runs"][0]["rounds"]["rows"]
    assert start == ["0", "0.250", "–", "–", "–", "–", "–", "–"]
    assert first == [
        "1",
        "0.450 (+0.200 [+0.100, +0.300])",
        "0.500 (+0.200 [+0.100, +0.300])",
        "0.750 (+0.200 [+0.100, +0.300])",
        "1,200",
        "0.812",
        "distinct 1.50, copied 0.00, repeated 0.10",
        "worse, not swapped in (0.500 → 0.250 held out)",
    ]
    assert run.evaluations["round 1, test"]["em"] == 0.45


def test_a_run_whose_rounds_have_not_ended_is_in_progress(tmp_path: Path):
    run = read_run(run_of(tmp_path / "run", 2, [START, FIRST]), "run")
    assert not run.finished
