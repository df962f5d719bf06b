"""Several evaluations in one command: every combination, compared question by question; sampled answers; a judge."""

import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings
from cli import main as program
from sleuth.errors import ConfigError
from sleuth.layout import EvaluationLayout
from sleuth.trajectories import read_trajectories
from workflows.grid import Cell, Options, cells_of, comparisons
from workflows.model_settings import evaluation_settings
from workflows.paired import values_of
from workflows.play import Opened, play

FAKES = '''
from agent.policies.scripted import ScriptedPolicy
from sleuth.errors import RetrieverError
from sleuth.types import Hit, Passage


def backend(settings, codec):
    """Right about question 1 at once; searches for question 2, and only the model ``wise`` reads what it finds."""
    wise = settings.model.endswith("wise")
    def script(question, turn):
        if question == "2" and turn == 0:
            return "<search>capital of England</search>"
        return f"<answer>{ {'1': 'Paris', '2': 'London' if wise else 'Paris'}[question] }</answer>"
    return ScriptedPolicy(codec, script)


class Shelf:
    def __init__(self, title="England"):
        self.fingerprint = self.title = title

    def search(self, queries, k):
        if self.title == "down":
            raise RetrieverError("the shelf fell over")
        return [[Hit(Passage("p", self.title, "the capital is London"), 1.0, 1)] for _ in queries]
'''
QUESTIONS = [
    {"id": "1", "question": "capital of France?", "golden_answers": ["Paris"], "metadata": {"type": "known"}},
    {
        "id": "2",
        "question": "capital of England?",
        "golden_answers": ["London"],
        "metadata": {"type": "new", "supporting_titles": ["England"]},
    },
]
BACKEND = ["--set", "policy.backend=grid_fakes:backend", "--preset", "minimal"]
SHELF = "{kind: 'grid_fakes:Shelf', options: {title: %s}}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    words = ["capital", "of", "France", "is", "Paris", "London", "England", "the", "?", "1", "2"]
    build_tiny_policy(folder, words, TinySettings(hidden_size=32, layers=2), 0)
    shutil.copytree(folder, folder.with_name("wise"))
    return str(folder)


@pytest.fixture(autouse=True)
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grid_fakes.py").write_text(FAKES, encoding="utf-8")
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "grid_fakes", raising=False)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        program.main(["evaluate", *arguments])
    return int(end.value.code or 0)


def grid(model: str, *more: str) -> int:
    retrievers = ["--retriever", f"good={SHELF % 'England'}", "--retriever", f"bad={SHELF % 'Wales'}"]
    modes = ["--mode", "direct", "--mode", "search"]
    return run(
        model, model.replace("tiny", "wise"), "--data", "a.jsonl", *retrievers, *modes, *BACKEND, "--out", "grid", *more
    )


def test_every_combination_once_and_compared(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert grid(model, "--json") == 0
    captured = capfd.readouterr()
    content = json.loads(captured.out)
    cells = {(row["policy"], row["mode"], row["retriever"]): row for row in content["cells"]}
    places = [("direct", "-"), ("search", "good"), ("search", "bad")]
    assert list(cells) == [(policy, *place) for policy in ("tiny", "wise") for place in places]
    assert [cells[key]["em"] for key in cells] == [0.5] * 3 + [1.0] * 3
    assert cells["tiny", "search", "good"]["supporting_titles"]["recall"] == 1.0
    assert cells["tiny", "search", "bad"]["supporting_titles"]["recall"] == 0.0
    assert cells["wise", "search", "good"]["by_kind"]["new"]["em"] == 1.0
    compared = {(row["a"], row["b"]): row for row in content["comparisons"]}
    assert len(compared) == 15
    found = compared["a-tiny-direct", "a-wise-search-good"]
    assert (found["n"], found["difference"]) == (2, 0.5)
    assert Path("grid/comparison.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(Path("grid/metrics.json").read_text()) == content
    assert (found["p_value"], found["method"]) == (1.0, "mcnemar"), "one question that differs tells nothing"
    assert "+0.500" in captured.err
    said = " ".join(captured.err.split())
    assert "95 % intervals: Wilson where every value is 0 or 1 (em" in said
    assert "EM against the first: exact McNemar p and Newcombe interval" in said


def test_a_kind_that_no_question_could_be_scored_of_is_a_dash(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    quick = "{kind: 'grid_fakes:Shelf', retries: 0, options: {title: down}}"
    shelves = ["--retriever", f"good={SHELF % 'England'}", "--retriever", f"down={quick}"]
    assert run(model, "--data", "a.jsonl", *shelves, *BACKEND, "--out", "grid") == 3
    line = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("a-tiny-search-down"))
    assert "1.000 (1)" in line and line.rstrip().endswith("-")


def test_a_mode_may_be_for_one_policy_alone(model: str) -> None:
    both = [f"base={model}", f"wise={model.replace('tiny', 'wise')}"]
    cells = cells_of(both, ["a.jsonl"], [SHELF % "x"], ["direct", "wise:search@3", "base:rag"], Options([]))
    assert [cell.system[:2] for cell in cells] == [
        ("base", "direct"),
        ("base", "rag"),
        ("wise", "direct"),
        ("wise", "search@3"),
    ]
    assert cells[-1].settings.environment.top_k == 3
    with pytest.raises(ConfigError, match="no mode is given for the model 'wise'"):
        cells_of(both, ["a.jsonl"], [], ["base:direct"], Options([]))


def test_a_killed_grid_goes_on_where_it_was(model: str) -> None:
    assert grid(model) == 0
    kept = Path("grid/a-tiny-direct/trajectories.jsonl")
    first = list(read_trajectories(kept))
    Path("grid/a-tiny-search-bad/trajectories.jsonl").unlink()
    assert grid(model) == 2, "a finished one is not replaced by accident"
    assert grid(model, "--resume") == 0
    assert list(read_trajectories(kept)) == first
    assert len(list(read_trajectories("grid/a-tiny-search-bad/trajectories.jsonl"))) == 2


def test_several_data_sets_stay_apart(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    sets = ["--data", "first=a.jsonl", "--data", "b.jsonl"]
    assert run(model, *sets, "--mode", "direct", *BACKEND, "--out", "two", "--json") == 0
    content = json.loads(capfd.readouterr().out)
    assert [row["data"] for row in content["cells"]] == ["first", "b"]
    assert content["comparisons"] == []


def test_other_questions_under_the_same_numbers_are_not_compared(model: str) -> None:
    for folder, question in (("one", "what ?"), ("two", "where ?")):
        Path(folder).mkdir()
        Path(folder, "dev.jsonl").write_text(json.dumps({**QUESTIONS[0], "question": question}) + "\n")
    cells = [
        Cell(
            "dev",
            policy,
            "direct",
            "-",
            evaluation_settings(model, [BACKEND[1]], f"{folder}/dev.jsonl", mode="direct", preset="minimal"),
        )
        for policy, folder in (("a", "one"), ("b", "two"))
    ]
    done = [play(cell.settings, Path(cell.policy), Opened(), resume=False, overwrite=False) for cell in cells]
    values = [values_of([EvaluationLayout(evaluation.folder)]) for evaluation in done]
    assert comparisons(cells, values) == []
    assert len(comparisons([cells[0]] * 2, [values[0]] * 2)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "a-b=a.jsonl", "--data", "a_b=b.jsonl", "--mode", "direct"], "saved in"),
        (["--mode", "serch"], "did you mean 'search'"),
        (["--mode", "tinny:direct"], "no model is called 'tinny' (did you mean 'tiny'?)"),
        (["--data", "x=a.jsonl", "--data", "x=b.jsonl"], "'x' is given twice"),
        (["--retriever", "{kind: [", "--mode", "search"], "as YAML"),
        (["--samples", "4", "--mode", "direct"], "several samples need a temperature"),
    ],
)
def test_mistakes_are_one_line(
    model: str, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = [] if "--data" in arguments else ["--data", "a.jsonl"]
    assert run(model, *data, *arguments, *BACKEND, "--out", "no") == 2
    error = capfd.readouterr().err
    assert message in error and "Traceback" not in error


def test_sampled_answers_differ_and_are_summed_up(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [model, "--data", "a.jsonl", "--mode", "direct", "--preset", "minimal", "--samples", "3"]
    assert run(*arguments, "--temperature", "1.0", "--out", "sampled", "--json") == 0
    figures = json.loads(capfd.readouterr().out)
    assert {"em", "f1", "pass@3", "majority@3", "pass@3_interval"} <= figures.keys()
    assert figures["n"] == 2
    parts = [list(read_trajectories(f"sampled/sample-{i}/trajectories.jsonl")) for i in (1, 2, 3)]
    sampled = [[row.trajectory.token_ids for row in part] for part in parts]
    assert sampled[0] != sampled[1] != sampled[2]


SUITE = """
sets:
  first: {files: [no.jsonl, a.jsonl], title: First, group: Easy, by: [type]}
  second: {files: [b.jsonl], limit: 1, group: Hard}
"""


def play_suite(model: str, *more: str) -> int:
    Path("mine.yaml").write_text(SUITE, encoding="utf-8")
    both = [model, model.replace("tiny", "wise"), "--suite", "mine.yaml", "--mode", "direct", "--mode", "search@1"]
    return run(*both, "--retriever", f"shelf={SHELF % 'England'}", *BACKEND, "--out", "suite", *more)


def test_a_suite_is_a_table_with_a_mean(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert play_suite(model, "--json") == 0
    said = capfd.readouterr()
    content: dict[str, Any] = json.loads(said.out)
    assert content["suite"]["sets"][1]["questions"] == 1 and content["suite"]["sets"][1]["of"] == 2
    means = {(row["policy"], row["mode"]): row["em"]["mean"] for row in content["suite"]["systems"]}
    assert means["wise", "search@1"] == 1.0 and means["tiny", "direct"] in (0.25, 0.75)
    assert content["suite"]["systems"][0]["by"]["type"]["known"] == {
        "em": 1.0,
        "n": 1,
        "em_interval": [pytest.approx(0.2065, abs=1e-3), 1.0],
    }
    assert "first: 2 of 2 questions of a.jsonl" in said.err and "wise direct" in said.err
    assert "reward" in content["comparisons"][0]
    assert Path("suite/suite.md").read_text().startswith("|  | Easy | Hard |  |\n")


def test_a_suite_that_was_stopped_goes_on_with_the_next_set(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert play_suite(model) == 0
    kept = Path("suite/first-tiny-direct/trajectories.jsonl")
    before = kept.read_bytes()
    Path("suite/second-tiny-direct/trajectories.jsonl").unlink()
    assert play_suite(model, "--resume", "--set", "suite.sets.second.limit=2") == 2
    assert "suite.second.questions = 1, not 2" in capfd.readouterr().err
    assert play_suite(model, "--resume") == 0
    assert kept.read_bytes() == before
    assert len(list(read_trajectories("suite/second-tiny-direct/trajectories.jsonl"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "mine.yaml", "--data", "a.jsonl"], "give either --data or --suite"),
        (["--data", "a.jsonl", "--skip-missing"], "--skip-missing goes with --suite"),
        (["--suite", "mine.yaml", "--mode", "rag@0"], "no mode 'rag@0'"),
        (["--suite", "mine.yaml", "--set", "suite.sets.first.files=[gone.jsonl]"], "the set first is not here"),
    ],
)
def test_mistakes_with_a_suite_are_one_line(
    model: str, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("mine.yaml").write_text(SUITE, encoding="utf-8")
    assert run(model, *arguments, *BACKEND, "--out", "no") == 2
    error = capfd.readouterr().err
    assert message in error and "Traceback" not in error and not Path("no").exists()


class FakeJudge(BaseHTTPRequestHandler):
    """Says yes to London, nothing sensible to Paris."""

    asked: list[dict[str, Any]]
    keys: list[str]
    busy_at: tuple[int, ...] = ()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        if len(self.asked) in self.busy_at:
            self.send_response(429)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.keys.append(self.headers.get("Authorization", ""))
        text = "<think>no?</think> Yes." if '"proposed_answer": "London"' in body["messages"][0]["content"] else "42"
        answer = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        self.send_response(200 if body["model"] == "wise" else 404)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    handler = type("Handler", (FakeJudge,), {"asked": [], "keys": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_a_judge_stands_beside_exact_match(model: str, judge: Any, capfd: pytest.CaptureFixture[str]) -> None:
    handler, url = judge
    shelf = ["--retriever", SHELF % "England", "--mode", "search"]
    setting = ["--set", f"evaluation.judge={{base_url: {url}, model: wise}}"]
    model = model.replace("tiny", "wise")
    assert run(model, "--data", "a.jsonl", *shelf, *BACKEND, *setting, "--out", "ev", "--json") == 0
    captured = capfd.readouterr()
    figures = json.loads(captured.out)
    assert figures["em"] == 1.0
    assert figures["judge"] == {"model": "wise", "right": 1.0, "judged": 1, "asked": 2}
    assert "100.0 % right, of 1 judged" in captured.err
    assert handler.keys == ["Bearer secret"] * 2
    assert run(model, "--data", "a.jsonl", *shelf, *BACKEND, *setting, "--out", "ev", "--resume") == 0
    assert len(handler.asked) == 2, "verdicts are kept"


def test_a_busy_judge_is_asked_again_and_what_it_said_is_kept(
    model: str, judge: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    handler, url = judge
    shelf = ["--retriever", SHELF % "England", "--mode", "search"]
    judging = f"evaluation.judge={{base_url: {url}, model: wise, parallel: 1, retries: 1}}"
    words = [model, "--data", "a.jsonl", *shelf, *BACKEND, "--set", judging, "--out", "busy"]
    handler.busy_at = (1, 3, 4)
    assert run(*words) == 2
    assert "answered 429, 2 times" in capfd.readouterr().err
    assert run(*words, "--resume", "--json") == 0
    assert json.loads(capfd.readouterr().out)["judge"]["asked"] == 2
    assert len(handler.asked) == 5, "the first verdict was not asked for again"


def test_a_judge_that_refuses_or_is_away_is_one_line(model: str, judge: Any, capfd: pytest.CaptureFixture[str]) -> None:
    _, url = judge
    for base, name, message in ((url, "fool", "answered 404"), ("http://127.0.0.1:9", "wise", "cannot be reached")):
        setting = ["--set", f"evaluation.judge={{base_url: {base!r}, model: {name}}}"]
        out = ["--out", "ev", "--resume", "--mode", "direct"]
        assert run(model, "--data", "a.jsonl", *BACKEND, *setting, *out) == 2
        error = capfd.readouterr().err
        assert message in error and "Traceback" not in error
