"""Evaluations and suites in the report: their tables, and which answers changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_runs import SIZE, answered, make_run, make_suite, rollouts, write_rows

from cli.report.page import LIMIT
from sleuth.runs import RunFolder
from workflows.report import sample
from workflows.report.collect import state_of
from workflows.report.compact import pack_runs, unpack


def test_an_evaluation_by_itself_is_a_run_too(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "eval")
    with run.claim({"environment": {"kind": "search"}}):
        pass
    figures = {"em": 1.0, "em_interval": [0.51, 1.0], "interval_methods": {"em": "wilson"}, "n": 4}
    (run.path / "metrics.json").write_text(json.dumps(figures))
    write_rows(run.path / "sample-1" / "trajectories.jsonl", rollouts(0, 1))
    write_rows(run.path / "sample-2" / "trajectories.jsonl", rollouts(1, 1))
    data = unpack(pack_runs([run.path], 2000, LIMIT))
    assert [(s["name"], s["shown"]) for s in data["sources"]] == [("sample-1", SIZE), ("sample-2", SIZE)]
    assert data["runs"][0]["finished"] and data["runs"][0]["evaluations"]["evaluation"]["em"] == 1
    assert data["intervals"] == "95 % intervals: Wilson where every value is 0 or 1 (em)"


def test_a_suite_is_a_table_and_its_systems_are_compared(tmp_path: Path) -> None:
    data = unpack(pack_runs([make_suite(tmp_path / "suite")], 2000, LIMIT))
    suite = data["runs"][0]["suite"]
    assert [(one["title"], one["questions"]) for one in suite["sets"]] == [("Set a", 4), ("Set b", 4)]
    assert [(row["name"], row["mean"][0]) for row in suite["systems"]] == [
        ("base, direct", 0.25),
        ("grpo, search, bm25", 0.5),
    ]
    assert data["runs"][0]["config"] == {"policy.model": None, "seed": 0}
    changes = data["changes"]
    base, grpo = changes["systems"]
    assert (base["name"], [data["sources"][place]["name"] for place in base["sources"]]) == (
        "base, direct",
        ["a-0", "b-0"],
    )
    assert dict(map(tuple, grpo["answers"])) == dict(enumerate([0, 1, 1, 0] * 2))
    assert changes["asked"][5] == ["b1", "Question b1? "]
    (pair,) = changes["pairs"]
    assert (pair["a"], pair["b"], pair["n"], pair["difference"], pair["method"]) == (0, 1, 8, 0.25, "mcnemar")


def test_a_suite_that_is_going_on_is_shown_and_watched(tmp_path: Path) -> None:
    suite = make_suite(tmp_path / "suite")
    before = state_of([suite])
    (suite / "metrics.json").unlink()
    assert state_of([suite]) != before
    run = unpack(pack_runs([suite], 2000, LIMIT))
    assert (run["runs"][0]["finished"], run["runs"][0]["suite"]) == (False, None)
    assert [system["name"] for system in run["changes"]["systems"]] == ["a-0", "b-0", "a-1", "b-1"]


def test_checkpoints_of_a_run_are_compared_in_order(tmp_path: Path) -> None:
    changes = unpack(pack_runs([make_run(tmp_path / "run")], 2000, LIMIT))["changes"]
    names = [system["name"] for system in changes["systems"]]
    assert names == ["test, warmstart-search", "dev, step 0", "dev, step 2", "test, grpo-search"]
    assert [(pair["a"], pair["b"]) for pair in changes["pairs"]] == [(0, 3), (1, 2)]


def test_changed_questions_stay_where_others_are_left_out(tmp_path: Path) -> None:
    suite = make_suite(tmp_path / "suite")
    for number, changed in ((0, "no"), (1, "x")):
        rows = [answered(f"q{i}", changed if i in (33, 77) else "no") for i in range(100)]
        write_rows(suite / f"a-{number}" / "trajectories.jsonl", rows)
    data = unpack(pack_runs([suite], 40, LIMIT))
    shown = [
        {
            data["tables"]["questions"][row["q"]]["id"]
            for row in data["rows"]
            if data["sources"][row["s"]]["name"] == name
        }
        for name in ("a-0", "a-1")
    ]
    assert all({"q33", "q77"} <= ids and len(ids) < 20 for ids in shown) and shown[0] == shown[1]


def test_all_changed_questions_stay_whatever_the_limit(tmp_path: Path) -> None:
    suite = make_suite(tmp_path / "suite")
    for number, changed in ((0, "no"), (1, "x")):
        rows = [answered(f"q{i}", changed if i % 3 == 0 else "no", text="long " * 40) for i in range(100)]
        write_rows(suite / f"a-{number}" / "trajectories.jsonl", rows)
    wanted = {f"q{i}" for i in range(0, 100, 3)}
    few, small = unpack(pack_runs([suite], 10, LIMIT)), unpack(pack_runs([suite], 2000, 6_000))
    assert len(small["rows"]) < 208
    for data in (few, small):
        ids = [question["id"] for question in data["tables"]["questions"]]
        for place, source in enumerate(data["sources"]):
            if source["name"] in ("a-0", "a-1"):
                assert wanted <= {ids[row["q"]] for row in data["rows"] if row["s"] == place}


def test_changed_questions_are_bounded_and_the_same_in_every_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "CHANGED", 40)
    suite = make_suite(tmp_path / "suite")
    for number, changed in ((0, "no"), (1, "x")):
        rows = [answered(f"q{i}", changed) for i in range(100)]
        write_rows(suite / f"a-{number}" / "trajectories.jsonl", rows)
    data = unpack(pack_runs([suite], 10, LIMIT))
    ids = [question["id"] for question in data["tables"]["questions"]]
    shown = [
        {ids[row["q"]] for row in data["rows"] if data["sources"][row["s"]]["name"] == name} for name in ("a-0", "a-1")
    ]
    assert shown[0] == shown[1] and 10 < len(shown[0]) <= 20


def test_packs_and_their_kinds_stand_with_their_evaluation(tmp_path: Path) -> None:
    gold, none = {"questions": 2, "recall": 0.25}, {"questions": 0, "recall": None}
    single = {"em": 0.5, "em_interval": [0.1, 0.9], "n": 2, "gold": gold, "alternatives": none}
    distant = {"em": 0.0, "n": 1, "gold": none, "alternatives": {"questions": 1, "recall": 1.0}}
    older = {"em": 0.5, "n": 3}
    groups = {
        "one": {"by_pack": {"nq": {**single, "n": 3, "by_kind": {"a": single, "b": distant}}, "x": single}},
        "two": {"by_kind": {"bridge": older}},
    }
    for name, content in groups.items():
        with RunFolder(tmp_path / name).claim({}):
            (tmp_path / name / "metrics.json").write_text(json.dumps({"em": 0.5, "n": 3, **content}))
    packs, kinds = (
        run["groups"]["evaluation"] for run in unpack(pack_runs([tmp_path / name for name in groups], 9, LIMIT))["runs"]
    )
    assert [(name, depth, of["n"]) for name, depth, of in packs] == [
        ("nq", 0, 3),
        ("a", 1, 2),
        ("b", 1, 1),
        ("x", 0, 2),
    ]
    assert [(of["gold_recall"], of["alternatives_recall"]) for _, _, of in packs[1:3]] == [(0.25, None), (None, 1)]
    assert packs[3][2]["em_interval"] == [0.1, 0.9]
    assert kinds == [["bridge", 0, {"em": 0.5, "n": 3}]]
