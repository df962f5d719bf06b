"""evaluate-retrieval over sets: what is left out, how deep it searches, several sets, topics, output by query."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli.evaluate_retrieval import evaluate_retrieval
from cli.search import search
from retrieval.bm25 import build_bm25
from retrieval.evaluation.runs import read_run
from retrieval.open import open_retriever
from retrieval.service.config import ServiceLimits
from sleuth.errors import ArtifactError, ConfigError, DataError

TOWNS = ("Arden", "Brill", "Corvo", "Dunmore", "Estray")


@pytest.fixture(scope="module")
def program() -> typer.Typer:
    app = typer.Typer()
    for command in (evaluate_retrieval, search):
        app.command()(command)
    return app


def make(folder: Path, queries: dict[str, str], judged: list[tuple[str, str]]) -> Path:
    """A BEIR folder of five towns, "0" to "4", of which the last has a title only."""
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": str(i), "title": f"Town {n}", "text": f"{n} town makes ware."} for i, n in enumerate(TOWNS)]
    rows[-1]["text"] = ""
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = [{"_id": name, "text": text} for name, text in queries.items()]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, asked)))
    lines = [f"{query}\t{passage}\t1" for query, passage in judged]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its first query is passage 0, which is not its answer."""
    folder = tmp_path_factory.mktemp("sets") / "one"
    make(folder, {"0": "Arden town makes ware, or Brill", "q": "Estray"}, [("0", "1"), ("q", "4")])
    build_bm25(folder / "corpus.jsonl", folder.parent / "index-one")
    return folder


@pytest.fixture(scope="module")
def two(one: Path) -> Path:
    folder = make(one.parent / "two", {"a": "Brill", "b": "Corvo"}, [("a", "1"), ("b", "0")])
    shutil.copytree(one.parent / "index-one", one.parent / "index-two")
    return folder


def run(program: typer.Typer, *arguments: object) -> tuple[str, str]:
    words = ["evaluate-retrieval", *map(str, arguments)]
    done = CliRunner().invoke(program, words, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout, " ".join(done.stderr.split())


def figures(program: typer.Typer, *arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(program, *arguments, "--json")[0])
    return found


def test_a_query_does_not_find_itself_in_a_set_of_beir(program: typer.Typer, one: Path, tmp_path: Path) -> None:
    index, out = one.parent / "index-one", tmp_path / "a.run"
    found = figures(program, index, "--beir", one, "-k", 2, "--measures", "RR@2", "--run-out", out)
    assert found["RR@2"] == 1
    assert next(iter(read_run(out)["0"])) == "1"
    assert len(read_run(out)["0"]) == 2  # the third hit has moved up
    assert figures(program, index, "--beir", one, "--keep-itself", "--measures", "RR")["RR"] == 0.75
    files = ("--queries", one / "queries.jsonl", "--qrels", one / "qrels" / "test.tsv")
    assert figures(program, index, *files, "--measures", "RR")["RR"] == 0.75
    (tmp_path / "given.run").write_text("0 Q0 0 1 9 x\n0 Q0 1 2 8 x\nq Q0 4 1 9 x\n")
    assert figures(program, "--run", tmp_path / "given.run", "--beir", one, "--measures", "RR")["RR"] == 1


def test_bright_leaves_out_what_its_examples_exclude(program: typer.Typer, one: Path, tmp_path: Path) -> None:
    example = {"id": "0", "query": "Arden town makes ware", "gold_ids": ["1"], "gold_ids_long": ["N/A"]}
    for name, rows in (
        ("examples", [{**example, "excluded_ids": ["0", "2", "3"]}]),
        ("documents", [{"id": str(i), "content": f"{town} town makes ware."} for i, town in enumerate(TOWNS)]),
    ):
        (tmp_path / "B" / name).mkdir(parents=True)
        (tmp_path / "B" / name / "pony.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = f"{{kind: bm25, index: {tmp_path}/{{set}}}}"
    out = tmp_path / "x.run"
    found = figures(program, settings, "--bright", tmp_path / "B", "-k", 1, "--measures", "RR@1", "--run-out", out)
    assert found["RR@1"] == 1
    assert read_run(out) == {"0": {"1": pytest.approx(read_run(out)["0"]["1"])}}
    assert (tmp_path / "bright-pony").is_dir()
    with pytest.raises(DataError, match="no long documents"):
        run(program, settings, "--bright", tmp_path / "B" / "pony", "--long")


def test_the_depth_follows_the_measures(program: typer.Typer, one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from retrieval.bm25 import BM25Retriever

    asked: list[int] = []
    real = BM25Retriever.search
    monkeypatch.setattr(BM25Retriever, "search", lambda self, queries, k: asked.append(k) or real(self, queries, k))
    monkeypatch.setattr(BM25Retriever, "__len__", lambda self: 10**6)
    monkeypatch.setattr("retrieval.indexes.check_k", lambda k, *_: k)
    index = one.parent / "index-one"
    for measures, depth in (("nDCG@10", 10), ("nDCG@10 R@1000", 1_000), ("nDCG", 1_000), ("AP", 1_000), ("P@30", 30)):
        assert figures(program, index, "--beir", one, "--keep-itself", "--measures", measures)["depth"] == depth
    assert asked == [10, 1_000, 1_000, 1_000, 30]
    _, err = run(program, index, "--beir", one, "-k", 50)
    assert "-k is 50: R@100 cannot be computed" in err
    assert "-k is 50: AP is cut there; published figures read 1,000 hits" in err
    _, err = run(program, f"{{kind: hybrid, parts: [{index}, {index}], depth: 20}}", "--beir", one)
    assert "the retriever's depth is 20: AP is cut there" in err


def test_several_sets_are_one_table_with_means(program: typer.Typer, one: Path, two: Path) -> None:
    arguments = (f"{one.parent}/index-{{set}}", "--beir", one, "--beir", two, "--measures", "RR R@1")
    found = figures(program, *arguments)
    assert found["sets"]["one"]["RR"] == 1
    assert found["sets"]["two"]["R@1"] == 0.5
    assert found["mean"]["R@1"] == 0.75
    assert found["mean_over"] == {"RR": 2, "R@1": 2}
    out, err = run(program, *arguments)
    assert out == ""
    assert "index-{set}: 2 sets set queries RR R@1 one 2 1.0000 1.0000 two 2" in err
    assert "mean " in err


def test_finished_sets_are_kept_and_the_others_made(
    program: typer.Typer, one: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import workflows.retrieval_jobs

    settings, out = f"{{kind: bm25, index: {tmp_path}/i-{{set}}}}", tmp_path / "out"
    arguments = (settings, "--beir", one, "--beir", two, "--out", out, "--run-out", tmp_path / "{set}.run")
    real, searched = workflows.retrieval_jobs.search_set, []

    def search_set(retriever: Any, most: Any, chosen: Any, *rest: Any, **how: Any) -> Any:
        searched.append(chosen.name)
        if searched == ["one", "two"]:
            raise KeyboardInterrupt
        return real(retriever, most, chosen, *rest, **how)

    monkeypatch.setattr(workflows.retrieval_jobs, "search_set", search_set)
    with pytest.raises(KeyboardInterrupt):
        workflows.retrieval_jobs.evaluate_sets(
            *_asked(settings, one, two, out), lambda _: None, lambda _: None, _no_count
        )
    again = figures(program, *arguments)
    assert searched == ["one", "two", "two"]
    assert again == figures(program, *arguments)
    assert searched == ["one", "two", "two"]
    assert read_run(tmp_path / "one.run").keys() == {"0", "q"}
    with pytest.raises(ArtifactError, match=r"one\.json has the figures of another retriever and measures"):
        run(program, *arguments, "--measures", "RR", "--set", "retriever.k1=3")


def _asked(settings: str, one: Path, two: Path, out: Path) -> tuple[Any, Any]:
    from workflows.retrieval_jobs import Job
    from workflows.retrieval_sets import Sources, read_sets

    return read_sets(Sources(beir=[str(one), str(two)]), print), Job(settings, out=out)


def _no_count(_title: str) -> Any:
    from contextlib import nullcontext

    return nullcontext()


def test_an_index_that_is_missing_is_made_from_the_set_if_its_kind_is_named(
    program: typer.Typer, one: Path, tmp_path: Path
) -> None:
    _, err = run(program, "--set", f"retriever={{kind: bm25, index: {tmp_path}/made}}", "--beir", one)
    assert f"{tmp_path}/made does not exist: it is made from {one}" in err
    hybrid = f"{{kind: hybrid, parts: [{{kind: bm25, index: {tmp_path}/a}}, {{index: {tmp_path}/b, k1: 2.0}}]}}"
    assert figures(program, hybrid, "--beir", one, "--measures", "RR@5")["RR@5"] == 1
    named = (tmp_path / "named", "--set", "retriever.kind=bm25", "--beir", one, "--measures", "RR@5")
    assert figures(program, *named)["RR@5"] == 1
    with pytest.raises(ArtifactError, match=r"to make it from .*, name its kind"):
        run(program, tmp_path / "nope", "--beir", one)
    assert not (tmp_path / "nope").exists()


def test_rows_that_are_no_passages_are_left_out_when_told(program: typer.Typer, one: Path, tmp_path: Path) -> None:
    shutil.copytree(one, tmp_path / "set")
    with (tmp_path / "set" / "corpus.jsonl").open("a") as file:
        file.write('\n{"_id": "5", "title": "", "text": ""}\n')
    arguments = (f"{{kind: bm25, index: {tmp_path}/i}}", "--beir", tmp_path / "set")
    with pytest.raises(DataError, match=r"corpus\.jsonl:6: empty text .*--skip-bad-rows"):
        run(program, *arguments)
    assert "1 rows left out: empty text" in run(program, *arguments, "--skip-bad-rows")[1]


def test_a_run_needs_no_judgements(program: typer.Typer, one: Path, tmp_path: Path) -> None:
    index, out = one.parent / "index-one", tmp_path / "a.run"
    printed, err = run(program, index, "--queries", one / "queries.jsonl", "--run-out", out, "--json")
    assert json.loads(printed) == {"queries": 2, "depth": 1_000, "intervals": {}, "interval_methods": {}}
    assert "2 queries, none judged" in err
    assert read_run(out).keys() == {"0", "q"}
    with pytest.raises(ConfigError, match="there are no judgements"):
        run(program, index, "--queries", one / "queries.jsonl")
    with pytest.raises(ConfigError, match="there are no judgements"):
        run(program, index, "--queries", one / "queries.jsonl", "--run-out", out, "--measures", "AP")


def test_a_service_is_asked_for_no_more_hits_than_it_gives(program: typer.Typer, one: Path, serving: Any) -> None:
    index = one.parent / "index-one"
    with serving(open_retriever(index), ServiceLimits(max_topk=3)) as url:
        arguments = ("--beir", one, "--measures", "RR AP", "--json")
        printed, err = run(program, url, *arguments)
        assert json.loads(printed)["RR"] == 1
        assert json.loads(printed)["depth"] == 3
        assert "the retriever's depth is 3: RR, AP is cut there" in err
        with pytest.raises(ConfigError, match="P@4 needs more hits"):
            run(program, url, "--beir", one, "--measures", "P@4")


def test_an_index_at_hand_takes_the_time_that_it_takes(
    program: typer.Typer, one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retrieval.bm25 import BM25Retriever

    real = BM25Retriever.search
    monkeypatch.setattr(BM25Retriever, "search", lambda self, queries, k: time.sleep(0.05) or real(self, queries, k))
    index = one.parent / "index-one"
    for parts in (f"{{index: {index}", f"{{kind: hybrid, parts: [{index}, {index}]"):
        settings = f"{parts}, timeout_s: 0.01, retries: 0}}"
        assert figures(program, settings, "--beir", one, "--measures", "RR@5")["RR@5"] == 1


def test_topics_and_qrels_of_trec(program: typer.Typer, one: Path, tmp_path: Path) -> None:
    (tmp_path / "topics").write_text("<top>\n<num> Number: 007\n<title> Brill\n<desc> Description:\nCorvo\n</top>")
    (tmp_path / "qrels").write_text("7 0 1 1\n7 0 3 0\n")
    arguments = (one.parent / "index-one", "--topics", tmp_path / "topics", "--qrels", tmp_path / "qrels")
    assert figures(program, *arguments, "--measures", "RR")["RR"] == 1
    assert figures(program, *arguments, "--measures", "RR", "--topic-field", "description")["RR"] == 0
    with pytest.raises(ConfigError, match="either --queries or --topics"):
        run(program, *arguments, "--queries", one / "queries.jsonl")


@pytest.mark.parametrize("name", ["figures.tsv", "figures.json"])
def test_figures_of_every_query(program: typer.Typer, one: Path, tmp_path: Path, name: str) -> None:
    arguments = ("--beir", one, "--keep-itself", "--measures", "RR P@1", "--per-query", tmp_path / name)
    run(program, one.parent / "index-one", *arguments)
    text = (tmp_path / name).read_text()
    if name.endswith("tsv"):
        assert text == "query\tRR\tP@1\n0\t0.5\t0.0\nq\t1.0\t1.0\n"
    else:
        assert json.loads(text) == {"0": {"RR": 0.5, "P@1": 0.0}, "q": {"RR": 1.0, "P@1": 1.0}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{one}/../index-one", "--beir", "{one}", "--beir", "{one}"], "two sets are called 'one'"),
        (["x", "--beir", "{one}", "--beir", "{two}", "--qrels", "{one}/qrels/test.tsv"], "go with one set"),
        (["x-{{set}}", "--beir", "{one}", "--beir", "{two}", "--run-out", "a.run"], "is one file for 2 sets"),
        (["{{kind: bm25, index: x}}", "--beir", "{one}", "--beir", "{two}"], "x cannot be made from 2 sets"),
        (["x", "--mteb", "SciFact", "--beir", "{one}"], "--mteb goes with"),
    ],
)
def test_mistakes_are_one_clear_line(
    program: typer.Typer, one: Path, two: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(program, *(argument.format(one=one, two=two) for argument in arguments))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_search_gives_fewer_hits_than_asked(program: typer.Typer, one: Path) -> None:
    done = CliRunner().invoke(program, ["search", str(one.parent / "index-one"), "town", "-k", "50", "--json"])
    assert len(json.loads(done.stdout)["hits"]) == 5


def test_figures_are_sliced_by_the_level_of_the_queries(program: typer.Typer, one: Path, tmp_path: Path) -> None:
    index = one.parent / "index-one"
    shutil.copytree(one, tmp_path / "set")
    rows = [json.loads(line) for line in (one / "queries.jsonl").read_text().splitlines()]
    rows[0]["level"], rows[1]["metadata"] = "keyword", {"level": "reasoning"}
    (tmp_path / "set" / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = figures(program, index, "--beir", tmp_path / "set", "--keep-itself", "--measures", "RR")
    levels = found["levels"]
    assert levels == {"keyword": {"queries": 1, "RR": 0.5}, "reasoning": {"queries": 1, "RR": 1.0}}
    assert found["RR"] == 0.75
    err = run(program, index, "--beir", tmp_path / "set", "--keep-itself", "--measures", "RR")[1]
    assert "level queries RR" in err and "reasoning 1 1.0000" in err
    assert "levels" not in figures(program, index, "--beir", one, "--measures", "RR")
    del rows[0]["level"]  # some queries have none
    (tmp_path / "set" / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = figures(program, index, "--beir", tmp_path / "set", "--keep-itself", "--measures", "RR")
    assert found["levels"] == {"reasoning": {"queries": 1, "RR": 1.0}} and found["RR"] == 0.75


def test_a_suite_is_its_sets_under_its_names_with_their_mean(
    program: typer.Typer, one: Path, two: Path, tmp_path: Path
) -> None:
    suite = tmp_path / "suite.yaml"
    rows = {"first": {"folder": str(one)}, "second": {"folder": str(two)}}
    suite.write_text(json.dumps({"sets": rows}))
    index = f"{{kind: bm25, index: {tmp_path}/i-{{set}}}}"
    words = ["evaluate-retrieval", index, "--suite", str(suite), "--json"]
    result = CliRunner().invoke(program, words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    alone = CliRunner().invoke(program, ["evaluate-retrieval", str(tmp_path / "i-first"), "--beir", str(one), "--json"])
    own = json.loads(alone.stdout)
    assert {name: found["sets"]["first"][name] for name in ("nDCG@10", "R@5")} == {
        name: own[name] for name in ("nDCG@10", "R@5")
    }
    assert found["mean"]["R@5"] == pytest.approx(sum(found["sets"][name]["R@5"] for name in rows) / 2)
    assert "AP" not in found["mean"]


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["--suite", "unifed"], ConfigError, "no suite 'unifed'.*unified"),
        (["--suite", "unified", "--beir", "x"], ConfigError, "--suite names its sets"),
        (["--suite", "unified"], DataError, "set wiki of the suite is not at .*wiki"),
    ],
)
def test_a_suite_that_is_not_there_is_one_clear_line(
    program: typer.Typer, monkeypatch: pytest.MonkeyPatch, words: list[str], error: type[Exception], said: str
) -> None:
    monkeypatch.setenv("SLEUTH_DATA", "/nowhere")
    result = CliRunner().invoke(program, ["evaluate-retrieval", "i", *words])
    assert isinstance(result.exception, error)
    assert re.search(said, str(result.exception))
