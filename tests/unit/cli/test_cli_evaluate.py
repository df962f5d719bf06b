"""``sleuth evaluate`` from the command line: a scripted policy, an outside retriever, and finished predictions."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings
from cli import main as program
from sleuth.errors import ConfigError
from sleuth.trajectories import read_trajectories
from workflows.model_settings import evaluation_settings

FAKES = '''
from agent.policies.scripted import ScriptedPolicy
from envs.search_env import SearchEnvironment
from sleuth.errors import RetrieverError
from sleuth.types import Hit, Passage

ANSWERS = {"1": "Paris", "2": "Rome", "3": "the London"}


def backend(settings, codec):
    def script(question, turn):
        if turn == 0:
            return f"<search>capital {question}</search>"
        return f"<answer>{ANSWERS[question]}</answer>"
    return ScriptedPolicy(codec, script)


class Shelf:
    """Answers every query with one passage; refuses queries about question ``down``."""

    def __init__(self, down=""):
        self.down = down
        self.fingerprint = "shelf"

    def search(self, queries, k):
        if self.down and any(self.down in query for query in queries):
            raise RetrieverError("the shelf is empty")
        return [[Hit(Passage("p", "France", "capital of France is Paris"), 1.0, 1)] for _ in queries]


class Stumbles(SearchEnvironment):
    """Raises at the first turn of the question about England."""

    def reset(self, question):
        self._england = "England" in question.text
        return super().reset(question)

    def step(self, text):
        return {}["state"] if self._england else super().step(text)


class Moody:
    """Raises on the question about a city."""

    name = "moody"

    def score(self, question, trajectory):
        return 1 / (question.text != "city?")
'''
QUESTIONS = [
    {"id": "1", "question": "capital of France?", "golden_answers": ["Paris"], "metadata": {"type": "one"}},
    {"id": "2", "question": "capital of England?", "golden_answers": ["London"], "metadata": {"type": "one"}},
    {"id": "3", "question": "city?", "golden_answers": ["Londinium", "London"], "metadata": {"type": "two"}},
]
SEARCH = ["--set", "policy.backend=evaluate_fakes:backend", "--set", "retriever.kind=evaluate_fakes:Shelf"]
SEARCH += ["--preset", "minimal", "--batch-size", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    words = ["capital", "of", "France", "is", "Paris", "London", "Rome", "the", "city", "?", "1", "2", "3"]
    build_tiny_policy(folder, words, TinySettings(hidden_size=32, layers=2), 0)
    return str(folder)


@pytest.fixture(autouse=True)
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evaluate_fakes.py").write_text(FAKES, encoding="utf-8")
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evaluate_fakes", raising=False)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        program.main(["evaluate", *arguments])
    return int(end.value.code or 0)


def test_figures_on_stdout_are_those_of_the_run_folder(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(model, "--data", "q.jsonl", *SEARCH, "--out", "ev", "--json") == 0
    captured = capfd.readouterr()
    figures = json.loads(captured.out)
    assert captured.out.count("\n") == 1
    assert figures == json.loads(Path("ev/metrics.json").read_text())
    assert (figures["em"], figures["n"], figures["unscored"]) == (pytest.approx(2 / 3), 3, 0)
    assert figures["searches"] == 1.0
    assert figures["answered"] == 1.0
    assert json.loads(Path("ev/predictions.json").read_text())["answer"]["1"] == "Paris"
    assert [row.reward for row in read_trajectories("ev/trajectories.jsonl")] == [1.0, 0.0, 1.0]
    assert "0.667" in captured.err
    assert "saved in" in captured.err


def test_an_evaluation_that_an_earlier_version_began_can_be_resumed(
    model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its config has a reward's own settings under ``options``."""
    rewards = "rewards=[{kind: exact_match}, {kind: retrieval, name: found, match: title}]"
    words = [model, "--data", "q.jsonl", *SEARCH, "--set", rewards, "--out", "old"]
    assert run(*words) == 0
    saved = yaml.safe_load(Path("old/config.yaml").read_text())
    plain = [{name: row[name] for name in ("kind", "weight", "name")} for row in saved["rewards"]]
    saved["rewards"] = [plain[0] | {"options": {}}, plain[1] | {"options": {"match": "title"}}]
    Path("old/config.yaml").write_text(yaml.safe_dump(saved))
    assert run(*words, "--resume") == 0, capfd.readouterr().err


def test_a_finished_evaluation_is_not_replaced_but_can_be_asked_again(
    model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    common = [model, "--data", "q.jsonl", *SEARCH, "--out", "ev"]
    assert run(*common) == 0
    first = Path("ev/metrics.json").read_text()
    capfd.readouterr()
    assert run(*common) == 2
    assert "--resume" in capfd.readouterr().err
    assert run(*common, "--resume", "--batch-size", "3") == 0
    assert Path("ev/metrics.json").read_text() == first
    assert run(*common, "--resume", "--set", "environment.searches=2") == 2
    assert "environment.searches" in capfd.readouterr().err
    saved = yaml.safe_load(Path("ev/config.yaml").read_text())
    del saved["environment"]["prompts"]  # as saved before there were any
    Path("ev/config.yaml").write_text(yaml.safe_dump(saved))
    assert run(*common, "--resume", "--set", "environment.prompts.invalid=again") == 2
    assert "environment.prompts.invalid = None, not 'again'" in " ".join(capfd.readouterr().err.split())
    assert run(*common, "--resume") == 0
    Path("q.jsonl").write_text(json.dumps(QUESTIONS[0]) + "\n", encoding="utf-8")
    assert run(*common, "--resume") == 2
    assert "data.sha256" in capfd.readouterr().err


def test_questions_that_could_not_be_scored_show_in_figures_and_exit_status(
    model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    # The outside retriever fails on question 2 only, so the others must be scored as before.
    down = ["--set", "retriever.options={down: 'capital 2'}", "--set", "retriever.retries=0"]
    assert run(model, "--data", "q.jsonl", *SEARCH, *down, "--out", "ev", "--json") == 3
    captured = capfd.readouterr()
    figures = json.loads(captured.out)
    assert (figures["em"], figures["n"], figures["scored"], figures["unscored"]) == (1.0, 3, 2, 1)
    assert figures["stops"] == {"answer": 2, "retriever_failed": 1}
    assert "1 of 3 questions could not be scored" in " ".join(captured.err.split())


def test_an_environment_and_a_reward_that_raise_cost_their_questions_only(
    model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    faulty = ["--set", "environment.kind=evaluate_fakes:Stumbles"]
    faulty += ["--set", "rewards=[{kind: exact_match}, {kind: 'evaluate_fakes:Moody'}]"]
    assert run(model, "--data", "q.jsonl", *SEARCH, *faulty, "--out", "ev", "--json") == 3
    captured = capfd.readouterr()
    figures = json.loads(captured.out)
    assert (figures["em"], figures["n"], figures["scored"], figures["unscored"]) == (1.0, 3, 1, 2)
    assert figures["failures"] == {"the environment": 1, "the reward Moody": 1}
    assert figures["stops"] == {"answer": 2, "environment_failed": 1}
    said = " ".join(captured.err.split())
    assert "question '2' of q.jsonl is unscored: the environment failed: KeyError: 'state'" in said
    assert "question '3' of q.jsonl is unscored: the reward Moody failed: ZeroDivisionError: division by zero" in said
    assert "2 of 3 questions could not be scored (the environment: 1, the reward Moody: 1); no mean" in said
    assert [row.reward for row in read_trajectories("ev/trajectories.jsonl")] == [2.0, None, None]


def test_direct_mode_opens_no_retriever(model: str) -> None:
    options = ["--set", "policy.backend=evaluate_fakes:backend", "--mode", "direct", "--out", "ev"]
    assert run(model, "--data", "q.jsonl", *options) == 0
    assert json.loads(Path("ev/metrics.json").read_text())["searches"] == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate"),
        (["MODEL"], "no question file is given"),
        (["MODEL", "--data", "q.jsonl"], "mode search needs something to search"),
        (["MODEL", "--data", "q.jsonl", "--mode", "rag"], "mode rag needs something to search"),
        (["MODEL", "--data", "none.jsonl", "--mode", "direct"], "none.jsonl"),
        (["nowhere/at/all", "--data", "q.jsonl", "--mode", "direct"], "nowhere/at/all"),
        (["MODEL", "--data", "q.jsonl", "--retriever", "none"], "sleuth index"),
        (["MODEL", "--data", "q.jsonl", "--mode", "direct", "--preset", "sleth"], "did you mean 'sleuth'?"),
        (["MODEL", "--data", "q.jsonl", "--mode", "direct", "--set", "sed=1"], "did you mean 'seed'?"),
        (["none.yaml"], "no config file none.yaml"),
        (["MODEL", "--predictions", "p.json", "--data", "q.jsonl"], "not both"),
        (["--predictions", "p.json"], "--data FILE"),
        (["--predictions", "p.json", "--data", "q.jsonl", "--data", "r.jsonl"], "exactly one question file"),
        (["--predictions", "p.json", "--data", "q.jsonl", "--temperature", "0"], "--temperature does not apply"),
        (["--predictions", "p.json", "--data", "q.jsonl", "--mode", "rag"], "--mode does not apply"),
    ],
)
def test_mistakes_are_one_line(
    model: str, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(*(model if word == "MODEL" else word for word in arguments)) == 2
    captured = capfd.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert message in line


# Which policy and environment a run, a config or a folder stands for


def write_run(**more: Any) -> Path:
    values = {
        "out": "runs/a",
        "policy": {"tiny": {}},
        "environment": {"preset": "minimal", "searches": 2},
        "retriever": {"kind": "bm25", "index": "idx"},
        "data": {"dev": "dev.jsonl"},
        **more,
    }
    folder = Path("runs/a")
    (folder / "stages").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    Path("a.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["a.yaml", "runs/a"])
def test_a_config_or_run_stands_for_the_last_policy_it_made_in_its_environment(name: str) -> None:
    run_folder = write_run()
    with pytest.raises(ConfigError, match="no policy yet"):
        evaluation_settings(name, [])
    (run_folder / "warmstart").mkdir()
    assert evaluation_settings(name, []).policy.model == "runs/a/warmstart"
    (run_folder / "grpo" / "policy").mkdir(parents=True)
    settings = evaluation_settings(name, [], limit=7)
    assert settings.policy.model == "runs/a/grpo/policy"
    assert (settings.environment.preset, settings.environment.searches) == ("minimal", 2)
    assert (settings.data.dev, settings.evaluation.limit) == ("dev.jsonl", 7)


def test_a_policy_inside_a_run_keeps_the_runs_environment_and_options_lie_over_it() -> None:
    (write_run() / "warmstart").mkdir()
    settings = evaluation_settings("runs/a/warmstart", ["environment.top_k=9"], data="test.jsonl", mode="direct")
    assert settings.policy.model == "runs/a/warmstart"
    assert (settings.environment.preset, settings.environment.top_k) == ("minimal", 9)
    assert (settings.environment.kind, settings.data.dev) == ("direct", "test.jsonl")


def test_the_limit_of_a_run_is_about_its_own_questions() -> None:
    write_run(policy={"model": "smollm2"}, evaluation={"limit": 24})
    assert evaluation_settings("a.yaml", []).evaluation.limit == 24
    assert evaluation_settings("a.yaml", [], data="test.jsonl").evaluation.limit is None
    assert evaluation_settings("a.yaml", [], data="test.jsonl", limit=7).evaluation.limit == 7
    assert evaluation_settings("a.yaml", ["evaluation.limit=9"], data="test.jsonl").evaluation.limit == 9


def test_a_config_with_a_model_that_was_not_trained_yet_stands_for_that_model() -> None:
    write_run(policy={"model": "smollm2"})
    assert evaluation_settings("a.yaml", []).policy.model == "smollm2"


# Finished predictions


def predictions(content: Any) -> str:
    Path("p.json").write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return "p.json"


def test_predictions_are_scored_without_a_model(capfd: pytest.CaptureFixture[str]) -> None:
    path = predictions({"answer": {"1": "paris.", "2": "Greater London", "x": "unknown"}, "sp": {}})
    assert run("--predictions", path, "--data", "q.jsonl", "--json", "--out", "scored") == 0
    captured = capfd.readouterr()
    figures = json.loads(captured.out)
    assert "Wilson where every value is 0 or 1 (em); bootstrap over questions (f1)" in captured.err
    assert figures["interval_methods"] == {"em": "wilson", "f1": "bootstrap"}
    assert figures["em"] == pytest.approx(1 / 3)
    assert figures["f1"] == pytest.approx((1 + 2 / 3) / 3)
    assert (figures["n"], figures["missing"], figures["other_questions"]) == (3, 1, 1)
    assert not any(name.startswith(("sp_", "joint_")) for name in figures)
    assert json.loads(Path("scored/metrics.json").read_text()) == figures


def test_predictions_nested_without_end_are_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    Path("deep.json").write_text('{"answer": ' + "[" * 100_000)
    assert run("--predictions", "deep.json", "--data", "q.jsonl") == 2
    said = capfd.readouterr().err
    assert "deep.json is not valid JSON" in said and said.count("\n") == 1


def test_an_evaluations_own_predictions_score_the_same(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(model, "--data", "q.jsonl", *SEARCH, "--out", "ev", "--json") == 0
    played = json.loads(capfd.readouterr().out)
    assert run("--predictions", "ev/predictions.json", "--data", "q.jsonl", "--json") == 0
    scored = json.loads(capfd.readouterr().out)
    assert (scored["em"], scored["f1"], scored["n"]) == (played["em"], played["f1"], played["n"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a prediction file"),
        ({"1": "Paris"}, "answer"),
        ({"answer": {"1": 3}}, "not a string"),
        ({"answer": {"dev-1": "Paris"}}, "predicted ids are like 'dev-1'"),
        ({"answer": {}, "sp": [1]}, "sp"),
    ],
)
def test_wrong_prediction_files_are_one_line(content: Any, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--predictions", predictions(content), "--data", "q.jsonl") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "p.json" in line
    assert message in line
