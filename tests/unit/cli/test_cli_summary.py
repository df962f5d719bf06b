"""What a run prints at its end comes from its files."""

import json
from pathlib import Path

import pytest

from cli.summary import print_summary
from sleuth.sinks import JsonlSink
from workflows.summary import dev_curves


def test_a_run_is_summed_up_from_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.scalars(0, {"dev/em": 0.25, "dev/em_two_hop": 0.0, "dev/f1": 0.5})
    sink.scalars(5, {"loss": 1.0})
    sink.scalars(10, {"dev/em": 0.75, "dev/em_two_hop": 0.5})
    kinds = {"one_hop": {"em": 1.0, "scored": 3}, "two_hop": {"em": 0.5, "scored": 1}, "yes_no": {"em": 0, "scored": 4}}
    figures = {"em": 0.5, "em_interval": [0.25, 0.75], "f1": 0.625, "n": 8, "scored": 8, "searches": 1.5}
    nothing = {"em": None, "f1": None, "n": 8, "scored": 0, "searches": None, "by_kind": {}}
    for name, content in (("grpo-search", {**figures, "by_kind": kinds}), ("warmstart-search", nothing)):
        (tmp_path / "evaluation" / name).mkdir(parents=True)
        (tmp_path / "evaluation" / name / "metrics.json").write_text(json.dumps(content), encoding="utf-8")
    print_summary(tmp_path)
    text = capsys.readouterr().err
    assert "all  0.250 → 0.750" in text
    assert "two_hop  0.000 → 0.500" in text
    assert "EM 0.500 [0.250, 0.750]  F1 0.625  n 8  searches 1.50" in text
    assert "95 % intervals: bootstrap over questions (em)" in text, "what an older run used"
    assert "one to three hops  EM 0.875  n 4" in text
    assert "warmstart-search   EM - [-, -]  F1 -  n 0/8  searches -" in text
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [curve.label for curve in dev_curves(tmp_path)] == ["all", "two_hop"]


def test_a_run_without_figures_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(tmp_path)
    assert capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []
