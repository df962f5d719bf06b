"""evaluate-retrieval and serve-retriever as typer calls them, and what may stand for a retriever."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli.evaluate_retrieval import evaluate_retrieval
from cli.search import search
from cli.serve_retriever import serve_retriever
from retrieval.bm25 import build_bm25
from retrieval.service.config import ServiceLimits
from sleuth.errors import ArtifactError, ConfigError, DataError, MissingExtraError, RetrieverError
from sleuth.types import Hit, Passage
from workflows.retrievers import retriever_settings

NAMES = ["Arden", "Brill", "Corvo", "Dunmore", "Estray"]
FIGURES = {"nDCG@10", "RR@10", "R@10", "AP"}


@pytest.fixture(scope="module")
def program() -> typer.Typer:
    app = typer.Typer()
    for command in (evaluate_retrieval, serve_retriever, search):
        app.command()(command)
    return app


@pytest.fixture(scope="module")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder with an index: query 0 has its gold first, query 1 has two golds, query 2 finds nothing."""
    folder = tmp_path_factory.mktemp("beir")
    rows = [{"_id": str(i), "title": f"Town {n}", "text": f"{n} makes ware{i}."} for i, n in enumerate(NAMES)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    queries = [
        {"_id": "q0", "text": "Arden", "golden_answers": ["ware0"]},
        {"_id": "q1", "text": "Brill Corvo", "golden_answers": ["elsewhere"]},
        {"_id": "q2", "text": "zzz"},
        {"_id": "unjudged", "text": "Estray"},
    ]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (folder / "qrels").mkdir()
    judged = "q0\t0\t1\nq1\t1\t1\nq1\t2\t1\nq2\t4\t1\n"
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    build_bm25(folder / "corpus.jsonl", folder / "index")
    return folder


def run(program: typer.Typer, *arguments: object, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(program, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == code
    return done.stdout, done.stderr


def figures(program: typer.Typer, *arguments: object) -> dict[str, Any]:
    out, _ = run(program, "evaluate-retrieval", *arguments, "--json")
    assert out.count("\n") == 1
    return json.loads(out)


def test_figures_by_hand(program: typer.Typer, beir: Path) -> None:
    found = figures(
        program, beir / "index", "--queries", beir / "queries.jsonl", "--qrels", beir / "qrels" / "test.tsv"
    )
    assert found.keys() > FIGURES
    assert found["queries"] == 3
    assert found["R@10"] == found["RR@10"] == found["AllGold@5"] == pytest.approx(2 / 3)
    assert found["answer_queries"] == 2
    assert found["Answer@1"] == 0.5
    assert found["intervals"]["AP"] == pytest.approx([0.207660, 0.938508], abs=1e-6)  # Wilson's, of 2 in 3
    assert found["interval_methods"]["AP"] == "wilson"
    assert found == figures(program, beir / "index", "--beir", beir)


def test_people_get_a_table_on_standard_error(program: typer.Typer, beir: Path) -> None:
    out, err = run(program, "evaluate-retrieval", beir / "index", "--beir", beir)
    assert out == ""
    assert "3 judged queries" in err
    assert "nDCG@10" in err
    assert "over the 2 queries with known answers" in err


def test_a_run_is_written_read_and_compared(program: typer.Typer, beir: Path, tmp_path: Path) -> None:
    first, qrels = tmp_path / "a.run", beir / "qrels" / "test.tsv"
    from_index = figures(program, beir / "index", "--beir", beir, "--run-out", first)
    from_run = figures(program, "--run", first, "--qrels", qrels)
    assert {name: from_run[name] for name in FIGURES} == {name: from_index[name] for name in FIGURES}
    assert not any(name.startswith("Answer") for name in from_run)
    with_texts = figures(program, "--run", first, "--beir", beir, "--passages", beir / "corpus.jsonl")
    assert from_index.pop("depth") == 1_000
    assert with_texts == from_index
    (tmp_path / "b.run").write_text("q0 Q0 0 1 1.0 x\nq2 Q0 4 1 1.0 x\n")
    found = figures(program, beir / "index", "--beir", beir, "--against", tmp_path / "b.run")["against"]["R@10"]
    assert found["other"] == pytest.approx(2 / 3)
    assert found["difference"] == pytest.approx(0)
    assert found["low"] < 0 < found["high"]
    same = figures(program, "--run", first, "--qrels", qrels, "--against", first)["against"]["AP"]
    assert (same["difference"], same["p_value"], same["method"]) == (0, 1, "mcnemar")
    _, shown = run(program, "evaluate-retrieval", "--run", first, "--qrels", qrels, "--against", first)
    assert "95 % intervals: Wilson where every value is 0 or 1 (nDCG@10, " in shown
    assert "differences: exact McNemar p and Newcombe interval where every value is 0 or 1 (nDCG@10, " in shown


def test_answers_alone_are_enough(program: typer.Typer, beir: Path) -> None:
    found = figures(program, beir / "index", "--queries", beir / "queries.jsonl")
    assert found["Answer@5"] == 0.5
    assert not FIGURES & found.keys()


def test_depth_and_measures(program: typer.Typer, beir: Path) -> None:
    shallow = figures(program, beir / "index", "--beir", beir, "-k", 2)
    assert "R@5" not in shallow
    assert "AP" in shallow
    chosen = figures(program, beir / "index", "--beir", beir, "--measures", "P@1, Success@1 RR")
    assert {"P@1", "Success@1", "RR"} <= chosen.keys()
    assert not FIGURES & chosen.keys()
    with pytest.raises(ConfigError, match="R@5 needs more hits per query than -k allows \\(2"):
        run(program, "evaluate-retrieval", beir / "index", "--beir", beir, "-k", 2, "--measures", "R@5")


class Flaky:
    """Fails on its first search; ten thousand made-up passages."""

    fingerprint = "flaky"
    passages = 10_000

    def __init__(self) -> None:
        self.failed = False

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        if not self.failed:
            self.failed = True
            raise RetrieverError("gone for a moment")
        return [[Hit(Passage("an id", "", "text"), 1.0, 1)] for _ in queries]


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "flaky", sys.modules[__name__])
    return "{kind: 'flaky:Flaky'}"


def test_a_retriever_that_fails_once_is_asked_again(program: typer.Typer, beir: Path, flaky: str) -> None:
    assert figures(program, flaky, "--beir", beir)["AP"] == 0
    with pytest.raises(RetrieverError, match="gone for a moment"):
        figures(program, flaky, "--beir", beir, "--set", "retriever.retries=0")


def test_figures_are_printed_before_a_run_that_cannot_be_written(
    program: typer.Typer, beir: Path, flaky: str, tmp_path: Path
) -> None:
    arguments = ["evaluate-retrieval", flaky, "--beir", beir, "--run-out", tmp_path / "r", "--json"]
    done = CliRunner().invoke(program, list(map(str, arguments)))
    assert isinstance(done.exception, DataError)
    assert json.loads(done.stdout)["queries"] == 3
    assert not (tmp_path / "r").exists()


def test_what_cannot_be_worked_out_is_said_before_anything_is_opened(
    program: typer.Typer, beir: Path, tmp_path: Path
) -> None:
    for wrong, message in ((["--measures", "nDGC@10"], "no measure 'nDGC@10'"), (["--against", "none"], "no file")):
        with pytest.raises((ConfigError, DataError), match=message):
            run(program, "evaluate-retrieval", tmp_path / "never-opened", "--beir", beir, *wrong)


def test_measures_read_no_further_than_a_composed_retriever_orders(program: typer.Typer, beir: Path) -> None:
    shallow = f"{{kind: hybrid, parts: [{beir / 'index'}, {beir / 'index'}], depth: 3}}"
    out, err = run(program, "evaluate-retrieval", shallow, "--beir", beir, "--json")
    assert "R@5" not in json.loads(out)
    assert "the retriever's depth is 3: nDCG@10, RR@10, R@5" in " ".join(err.split())
    with pytest.raises(ConfigError, match="R@5 needs more hits per query than the retriever's depth allows"):
        run(program, "evaluate-retrieval", shallow, "--beir", beir, "--measures", "R@5")
    nested = retriever_settings(f"{{kind: rerank, model: m, inner: {shallow}}}")
    assert (nested.most_hits, retriever_settings("i").most_hits) == (3, None)


def test_queries_that_are_missing_count_as_zero_and_are_said(program: typer.Typer, beir: Path, tmp_path: Path) -> None:
    some = tmp_path / "some.tsv"
    some.write_text("q0\tArden\n")
    arguments = ("evaluate-retrieval", beir / "index", "--queries", some, "--qrels", beir / "qrels" / "test.tsv")
    out, err = run(program, *arguments, "--json")
    assert json.loads(out)["R@10"] == pytest.approx(1 / 3)
    assert "2 of 3 judged queries are not in" in " ".join(err.split())
    some.write_text("other\tArden\n")
    with pytest.raises(DataError, match="has none of the 3 judged queries"):
        run(program, *arguments)


def test_ids_that_do_not_agree_are_pointed_out(program: typer.Typer, beir: Path, tmp_path: Path) -> None:
    (tmp_path / "r").write_text("q0 Q0 doc0 1 1.0 x\n")
    _, err = run(program, "evaluate-retrieval", "--run", tmp_path / "r", "--qrels", beir / "qrels" / "test.tsv")
    assert "do the passage ids match" in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--beir", "{beir}"], ConfigError, "give either an index or --run"),
        (["{beir}/index", "--run", "x", "--beir", "{beir}"], ConfigError, "give either an index or --run"),
        (["--run", "x", "-k", "3"], ConfigError, "-k, --run-out and --set apply to an index"),
        (["{beir}/index", "--qrels", "{beir}/qrels/test.tsv"], ConfigError, "no queries are given"),
        (["{beir}/index"], ConfigError, "there are no judgements"),
        (["{beir}/index", "--beir", "{beir}", "--split", "tst"], DataError, "did you mean 'test.tsv'"),
        (["{beir}/nope", "--beir", "{beir}"], ArtifactError, "no index at"),
        (["{beir}/index", "--beir", "{beir}", "--measures", "nDCG@0"], ConfigError, "no measure 'nDCG@0'"),
        (["{beir}/index", "--beir", "{beir}", "--against", "{beir}/none"], DataError, "no file"),
        (["--run", "{beir}/queries.jsonl", "--beir", "{beir}"], DataError, "line 1: "),
    ],
)
def test_mistakes_are_one_clear_line(
    program: typer.Typer, beir: Path, arguments: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        run(program, "evaluate-retrieval", *(argument.format(beir=beir) for argument in arguments))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_may_stand_for_a_retriever(tmp_path: Path) -> None:
    assert retriever_settings("runs/i").index == Path("runs/i")
    assert retriever_settings("http://h:1").kind == "remote"
    written = "{kind: hybrid, parts: [a, {index: b, k1: 1.2}], fusion: sum}"
    inline = retriever_settings(written)
    assert [part.index for part in inline.parts] == [Path("a"), Path("b")]
    (tmp_path / "bare.yaml").write_text(written)
    (tmp_path / "section.yaml").write_text(f"retriever: {written}")
    (tmp_path / "run.yaml").write_text(f"out: x\npolicy: {{model: m}}\nretriever: {written}")
    for name in ("bare", "section", "run"):
        assert retriever_settings(tmp_path / f"{name}.yaml") == inline
    assert retriever_settings("i", ["retriever.k1=2.0"]).k1 == 2.0
    assert retriever_settings("i", [f"retriever={written}"]) == inline
    nested = f"{{kind: rerank, model: m, inner: {written}, depth: 7}}"
    assert retriever_settings(nested, ["retriever.inner.rrf_k=10"]).inner.rrf_k == 10  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            "{index: nope, corpus: c, rrf_k: 10}",
            "kind is missing, and rrf_k is a setting of both promptreps and hybrid",
        ),
        ("{index: nope, fusion: rrf}", "kind is missing, and fusion is a setting of both promptreps and hybrid"),
        ("{index: nope, depth: 20}", "kind is missing, and depth is a setting of both promptreps and hybrid"),
        ("{index: nope, parts: [a, b]}", "kind is missing, and parts is a setting of both"),
        ("{parts: [a, b], rrf_k: 10}", "kind is missing: these are settings of kind hybrid"),
        ("{model: m, inner: a}", "kind is missing: these are settings of kind rerank"),
        ("{kind: promptreps, index: i, parts: dense, fusion: rrf}", "fusion does nothing with parts: dense"),
        ("{k1: 2}", "index is missing: the folder to search"),
        ("{}", "index is missing: the folder to search"),
    ],
)
def test_a_forgotten_kind_and_idle_settings_are_one_clear_line(written: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        retriever_settings(written)
    assert "\n" not in str(caught.value)


def test_an_index_to_be_made_is_of_the_kind_of_its_encoder() -> None:
    for kind in ("dense", "sparse", "multivector", "promptreps"):
        assert retriever_settings(f"{{index: nope, encoder: {{kind: {kind}, backbone: b}}}}").kind == kind
    assert retriever_settings("{index: nope, encoder: e, parts: sparse}").kind == "promptreps"
    assert retriever_settings("{index: nope, dtype: float16}").kind == "dense"


def test_an_evaluation_takes_what_may_stand_for_a_retriever() -> None:
    from workflows.model_settings import evaluation_settings

    for given, kind in (("http://h:1", "remote"), ("runs/i", "bm25"), ("{kind: hybrid, parts: [a, b]}", "hybrid")):
        settings = evaluation_settings("some/model", [], data="d.jsonl", retriever=given).retriever
        assert settings is not None
        assert settings == retriever_settings(given)
        assert settings.kind == kind


def test_settings_of_a_given_retriever_can_be_overridden() -> None:
    from workflows.model_settings import evaluation_settings, session_settings

    given, change = "{kind: hybrid, parts: [{kind: bm25, index: a}, b]}", "retriever.parts.0.k1=3"
    wanted = retriever_settings(given, [change])
    assert evaluation_settings("some/model", [change], data="d.jsonl", retriever=given).retriever == wanted
    assert session_settings("some/model", [change], given).retriever == wanted
    with pytest.raises(ConfigError, match=r"unknown setting 'retriever\.parts\.0\.kk1'"):
        evaluation_settings("some/model", ["retriever.parts.0.kk1=3"], data="d.jsonl", retriever=given)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{kind: hybrid}", "parts is missing"),
        ("{kind: hybrid, parts: [a, b], fusion: rff}", "fusion"),
        ("{kind: hybrid, parts: [a, b], index: c}", "index does nothing for a retriever of kind hybrid"),
        ("{kind: hybrid, parts: [a, {index: b, timeout_s: 3}]}", "timeout_s of a part does nothing"),
        ("{kind: rerank, inner: a}", "model is missing"),
        ("{kind: rerank, model: m}", "inner is missing"),
        ("{kind: remote}", "url is missing"),
        ("{index: a, model: m}", "model does nothing for a retriever of kind bm25"),
        ("{kind: hybrid, parts: [a, {idex: b}]}", "unknown setting 'retriever.parts.1.idex'"),
        ("{kind: hybird, parts: [a, b]}", "did you mean 'hybrid'"),
        ("{kind: hybrid", "cannot read"),
    ],
)
def test_a_retriever_that_is_written_wrongly_is_one_clear_line(written: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        retriever_settings(written)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["k1=1", "retriver.k1=9", "nonsense.deeply=1"])
def test_a_setting_that_search_does_not_have_is_refused(program: typer.Typer, beir: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="unknown setting"):
        run(program, "search", beir / "index", "Dunmore", "--set", override)


def test_search_takes_a_composed_retriever(program: typer.Typer, beir: Path) -> None:
    written = f"{{kind: hybrid, parts: [{beir / 'index'}, {{index: {beir / 'index'}, k1: 2.0}}]}}"
    out, _ = run(program, "search", written, "Dunmore", "-k", 1, "--json")
    assert json.loads(out)["hits"][0]["id"] == "3"


def test_a_port_that_is_taken_is_one_clear_line(program: typer.Typer, beir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            run(program, "serve-retriever", beir / "index", "--port", port)


def test_a_served_reranker_is_given_the_time_that_its_model_takes(
    program: typer.Typer, beir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import retrieval.open
    import retrieval.service.server

    given: list[float] = []
    monkeypatch.setattr(retrieval.open, "open_retriever", lambda settings, **_: None)
    monkeypatch.setattr(retrieval.service.server, "serve", lambda _, limits, **__: given.append(limits.timeout_s))
    reranked = f"{{kind: rerank, model: m, inner: {{index: {beir / 'index'}}}}}"
    run(program, "serve-retriever", beir / "index")
    run(program, "serve-retriever", reranked)
    run(program, "serve-retriever", reranked, "--timeout", 7)
    assert given == [60, 900, 7]


def test_the_limits_of_a_service_are_options_or_settings(
    program: typer.Typer, beir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import retrieval.open
    import retrieval.service.server

    given: list[ServiceLimits] = []
    monkeypatch.setattr(retrieval.open, "open_retriever", lambda settings, **_: None)
    monkeypatch.setattr(retrieval.service.server, "serve", lambda _, limits, **__: given.append(limits))
    run(program, "serve-retriever", beir / "index")
    numbers = {"--topk": 4, "--max-batch": 8, "--max-queries": 9, "--max-topk": 10, "--max-hits": 11}
    options = [word for option, value in numbers.items() for word in (option, value)]
    body = ("--set", "limits.max_body_bytes=1000", "--set", "retriever.k1=1.2")
    run(program, "serve-retriever", beir / "index", *options, "--max-pending", 12, *body)
    usual = ServiceLimits()
    chosen = {"default_topk": 4, "max_batch": 8, "max_queries": 9, "max_topk": 10, "max_hits": 11, "max_pending": 12}
    assert given == [usual, usual.model_copy(update={**chosen, "max_body_bytes": 1000})]
    with pytest.raises(ConfigError, match=r"unknown setting 'limits.max_query' \(did you mean 'max_queries'"):
        run(program, "serve-retriever", beir / "index", "--set", "limits.max_query=3")
    with pytest.raises(ConfigError, match="default_topk is 3, more than max_topk, 2"):
        run(program, "serve-retriever", beir / "index", "--max-topk", 2)


def test_the_help_tells_the_limits_that_a_service_has(program: typer.Typer) -> None:
    command = typer.main.get_command(program).commands["serve-retriever"]  # type: ignore[attr-defined]
    usual = ServiceLimits().model_dump()
    for option in ("topk", "max_batch", "max_queries", "max_topk", "max_hits", "max_pending"):
        (help_text,) = (parameter.help for parameter in command.params if parameter.name == option)
        assert help_text.endswith(f"[{usual['default_topk' if option == 'topk' else option]}]")


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_without_the_extra_it_says_what_to_install(
    program: typer.Typer, beir: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "retrieval.service.server", raising=False)
    with pytest.raises(MissingExtraError, match=rf"needs the package {package}.*pip install 'sleuth-rl\[serve\]'"):
        run(program, "serve-retriever", beir / "index")
