"""The questions of a suite: where they are found, which are drawn, and what the table makes of the answers."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import workflows.suites.choose
from envs.questions import load_questions
from sleuth.errors import ConfigError, DataError
from sleuth.rows import RawRow
from sleuth.seeding import drawn
from workflows.suites.choose import choose_sets
from workflows.suites.config import SUITES, SuiteSettings, load_suite, split_overrides
from workflows.suites.table import markdown, suite_figures


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows(count: int, **metadata: str) -> list[dict[str, Any]]:
    return [
        {"id": f"q{n}", "question": f"who {n}?", "golden_answers": ["x"], "metadata": {**metadata, "n": n % 3}}
        for n in range(count)
    ]


def suite(**sets: Any) -> SuiteSettings:
    return SuiteSettings.model_validate({"sets": sets})


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(workflows.suites.choose, "reachable", lambda: False)


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_that_is_named_is_valid_and_takes_overrides(name: str) -> None:
    first = next(iter(load_suite(name).sets))
    assert load_suite(name, [f"sets.{first}.limit=7", "seed=3"]).sets[first].limit == 7
    assert first not in load_suite(name, [f"sets.{first}=null"]).sets
    assert split_overrides(["suite.seed=3", "seed=4"]) == (["seed=3"], ["seed=4"])


def test_search_r1_has_the_sets_and_splits_of_the_paper() -> None:
    files = {
        name: one.files[-1].rpartition("FlashRAG_datasets/")[2] for name, one in load_suite("search_r1").sets.items()
    }
    splits = ["nq/test", "triviaqa/test", "popqa/test", "hotpotqa/dev", "2wikimultihopqa/dev", "musique/dev"]
    assert list(files.values()) == [*splits, "bamboogle/test"]


def test_the_first_file_that_is_there_is_taken_and_cut_by_seed(tmp_path: Path) -> None:
    file = write(tmp_path / "there.jsonl", rows(100))
    chosen, left_out = choose_sets(suite(a={"files": [str(tmp_path / "no.jsonl"), file], "limit": 20}), "mine")
    assert (chosen[0].source, len(chosen[0].lines), chosen[0].total, left_out) == (file, 20, 100, [])
    fewer, _ = choose_sets(suite(a={"files": [file], "limit": 20}), "mine", limit=5)
    assert set(fewer[0].lines) < set(chosen[0].lines), "a smaller draw is a part of a larger one"
    other, _ = choose_sets(suite(b={"files": [file], "limit": 20}), "mine")
    assert other[0].lines != chosen[0].lines, "sets are drawn apart"


@given(st.integers(1, 60), st.integers(1, 60), st.text(max_size=5))
def test_fewer_are_a_part_of_more_in_the_order_of_the_file(few: int, many: int, seed: str) -> None:
    given_rows = [RawRow("f", number, {}) for number in range(40)]
    less, more = (drawn(given_rows, count, seed) for count in sorted((few, many)))
    numbers = [row.number for row in less]
    assert numbers == sorted(set(numbers)) and len(less) == min(few, many, 40)
    assert set(numbers) <= {row.number for row in more}


def test_rows_without_ids_keep_their_names_when_others_are_left_out(tmp_path: Path) -> None:
    file = write(tmp_path / "nq.jsonl", [{"question": f"who {n}?", "answer": ["x"]} for n in range(9)])
    chosen, _ = choose_sets(suite(nq={"files": [file], "limit": 3}), "mine")
    chosen[0].write(tmp_path / "drawn.jsonl")
    whole = {question.id: question.text for question in load_questions(file)}
    drawn = load_questions(tmp_path / "drawn.jsonl")
    assert len(drawn) == 3 and all(whole[question.id] == question.text for question in drawn)


def test_rows_are_kept_by_a_field_of_their_metadata(tmp_path: Path) -> None:
    file = write(tmp_path / "f.jsonl", [*rows(3, kind="2hop"), {**rows(1, kind="single")[0], "id": "s"}])
    chosen, _ = choose_sets(suite(a={"files": [file], "where": {"kind": ["single"]}, "by": ["n", "kind"]}), "mine")
    assert [json.loads(line)["id"] for line in chosen[0].lines] == ["s"]
    assert chosen[0].labels == {"n": {("s", "who 0?"): "0"}, "kind": {("s", "who 0?"): "single"}}
    with pytest.raises(DataError, match=r"no question whose kind is singel.*did you mean 'single'"):
        choose_sets(suite(a={"files": [file], "where": {"kind": ["singel"]}}), "mine")
    with pytest.raises(DataError, match=r"no question whose n is 7"):
        choose_sets(suite(a={"files": [file], "where": {"kind": ["single"], "n": ["7"]}}), "mine")


def test_a_missing_set_is_one_line_and_may_be_left_out(tmp_path: Path) -> None:
    file = write(tmp_path / "f.jsonl", rows(2))
    both = suite(
        a={"files": [file]}, b={"files": ["no.jsonl", "hf://o/n/test"], "get": "ask for it"}, c={"files": ["x.csv"]}
    )
    with pytest.raises(DataError) as error:
        choose_sets(both, "mine")
    said = (
        "suite mine: the set b is not here (nor are c); looked for no.jsonl, hf://o/n/test (the hub cannot be reached)"
    )
    assert str(error.value) == f"{said} (ask for it; or leave out what is missing with --skip-missing)"
    chosen, left_out = choose_sets(both, "mine", skip_missing=True)
    assert ([one.name for one in chosen], left_out) == (["a"], ["b", "c"])
    with pytest.raises(DataError, match="not here"):
        choose_sets(suite(b={"files": ["no.jsonl"]}), "mine", skip_missing=True)


def test_a_suite_of_ones_own_is_a_yaml_file(tmp_path: Path) -> None:
    write(tmp_path / "f.jsonl", rows(2))
    file = tmp_path / "mine.yaml"
    file.write_text(f"sets:\n  a: {{files: ['{tmp_path}/f.jsonl'], titel: A}}\n")
    with pytest.raises(ConfigError, match=r"titel.*did you mean 'title'"):
        load_suite(str(file))
    with pytest.raises(ConfigError, match="did you mean 'wiki'"):
        load_suite("wikki")


def test_the_table_has_the_mean_over_sets_and_what_changed(tmp_path: Path) -> None:
    files = {name: write(tmp_path / f"{name}.jsonl", rows(count, kind="k")) for name, count in (("a", 2), ("b", 4))}
    sets, _ = choose_sets(
        suite(a={"files": [files["a"]], "title": "A", "group": "G"}, b={"files": [files["b"]], "by": ["kind"]}), "mine"
    )
    keys = {name: [(f"q{n}", f"who {n}?") for n in range(count)] for name, count in (("a", 2), ("b", 4))}
    one = {
        "a": dict(zip(keys["a"], [1.0, 0.0], strict=True)),
        "b": dict(zip(keys["b"], [0.0, 0.0, 0.0, 1.0], strict=True)),
    }
    two = {
        "a": dict(zip(keys["a"], [1.0, 1.0], strict=True)),
        "b": dict(zip(keys["b"], [1.0, 1.0, 0.0, 0.0], strict=True)),
    }
    figures = suite_figures(
        sets,
        {
            ("base", "direct", "-"): {name: {"em": values} for name, values in one.items()},
            ("grpo", "search", "bm25"): {name: {"em": values} for name, values in two.items()},
        },
        100,
    )
    base, grpo = figures["systems"]
    assert base["em"]["sets"] == {"a": 0.5, "b": 0.25} and base["em"]["mean"] == 0.375
    low, high = grpo["em"]["mean_interval"]
    assert low < grpo["em"]["mean"] == 0.75 < high
    assert grpo["by"]["kind"]["k"]["em"] == 0.5 and grpo["by"]["kind"]["k"]["n"] == 4
    (change,) = figures["changes"]
    assert (change["better"], change["worse"], change["n"], change["method"]) == (3, 1, 6, "mcnemar")
    assert markdown(figures).splitlines() == [
        "|  | G |  |  |",
        "| --- | ---: | ---: | ---: |",
        "|  | A | b | Avg. |",
        "| base, direct | 50.0 | 25.0 | 37.5 |",
        "| grpo, search, bm25 | 100.0 | 50.0 | 75.0 |",
    ]


def test_a_set_may_be_a_dataset_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(name: str, config: str | None, split: str) -> list[dict[str, Any]]:
        asked.append((name, config, split))
        return rows(5)

    monkeypatch.setattr("datasets.load_dataset", load)
    wanted = suite(nq={"files": ["no.jsonl", "hf://RUC-NLPIR/FlashRAG_datasets/nq/test"], "limit": 2})
    (chosen,), _ = choose_sets(wanted, "mine")
    assert (chosen.source, len(chosen.lines)) == ("hf://RUC-NLPIR/FlashRAG_datasets/nq/test", 2)
    assert set(asked) == {("RUC-NLPIR/FlashRAG_datasets", "nq", "test")}


@pytest.mark.data
@pytest.mark.skipif(not os.environ.get("SLEUTH_DATA"), reason="SLEUTH_DATA is not set")
def test_the_wiki_suite_has_all_multi_hop_questions_and_353_others() -> None:
    sets, _ = choose_sets(load_suite("wiki"), "wiki")
    assert [(one.name, len(one.lines), one.total) for one in sets] == [
        ("multi-hop", 247, 247),
        ("single-hop", 353, 1484),
        ("hotpotqa", 150, 150),
    ]
    packs = set(sets[0].labels["pack"].values()) | set(sets[1].labels["pack"].values())
    assert packs == {"hotpotqa_more", "musique_more", "2wiki_more", "squad_wiki", "afriqa", "xquad", "nq"}
