"""The service as a process: killed and restarted under an evaluation of the made-up world, and stopped gracefully."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests

from agent.codec import HFCodec
from agent.evaluate import evaluate
from agent.policies.loading import load_codec
from agent.rollout import RolloutDriver
from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings
from envs.config import EnvironmentSettings
from envs.factory import make_environment
from envs.plans import read_plans
from envs.toy_world.config import WorldSettings
from envs.toy_world.generate import generate_world
from envs.toy_world.write import read_vocabulary, write_world
from retrieval.bm25 import BM25Retriever, build_bm25
from retrieval.resilient import ResilientRetriever
from retrieval.service.remote import RemoteRetriever
from rewards.text_match import exact_match
from sleuth.protocols import Retriever
from sleuth.trajectories import read_trajectories
from sleuth.types import Generation, Hit, Plan, Request, Sampling, ScoredTrajectory

ROOT = Path(__file__).parents[2]
QUESTIONS = 24


class Service:
    """``sleuth serve-retriever`` in a process of its own, always at the same port."""

    def __init__(self, index: str, path: Path | None = None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "cli.main", "serve-retriever", index, "--port", str(self.port)]
        self._environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{path or ROOT}", "OMP_NUM_THREADS": "1"}
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command, stderr=subprocess.PIPE, text=True, env=self._environment, cwd=ROOT
        )

    def wait(self) -> None:
        until = time.monotonic() + 90
        while time.monotonic() < until:
            try:
                if requests.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            except requests.RequestException:
                assert self.process.poll() is None, self.process.stderr.read()  # type: ignore[union-attr]
                time.sleep(0.1)
        raise AssertionError("the service did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@dataclass
class Interrupted:
    """The remote retriever; at its n-th search ``happens`` comes first."""

    inner: Retriever
    at: int
    happens: Callable[[], None]
    searches: int = 0

    @property
    def fingerprint(self) -> str:
        return self.inner.fingerprint

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.searches += 1
        if self.searches == self.at:
            self.happens()
        return self.inner.search(queries, k)


@dataclass
class Reader:
    """Searches as the demonstrator does, but answers only what it has read: hits decide what is scored."""

    codec: HFCodec
    plans: dict[str, Plan]
    turns: dict[str, int] = field(default_factory=dict)
    trainable = True
    version = 0

    def generate(self, requests: Sequence[Request], sampling: Sampling, on_token: object = None) -> list[Generation]:
        return [self._answer(request) for request in requests]

    def release(self, episodes: Sequence[str]) -> None:
        for episode in episodes:
            self.turns.pop(episode, None)

    def _answer(self, request: Request) -> Generation:
        plan = self.plans[request.episode.rpartition("#")[0]]
        turn = self.turns[request.episode] = self.turns.get(request.episode, -1) + 1
        if turn < len(plan.steps):
            text = f"<think> look </think> <search> {plan.steps[turn].query} </search>"
        else:
            seen = self.codec.decode(request.prefix).partition("<information>")[2].lower()
            words = [word for word in plan.answer.lower().split() if word in seen]
            text = f"<think> read </think> <answer> {' '.join(words) or 'nothing'} </answer>"
        ids = tuple(self.codec.encode(text, trusted=True))
        return Generation(ids, (0.0,) * len(ids), "stop", 0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("service") / "world"
    sizes = {"films": 60, "people": 60, "companies": 30, "cities": 30, "countries": 12}
    write_world(generate_world(WorldSettings(**sizes, train=QUESTIONS, dev=4, test=4)), folder)
    build_bm25(folder / "corpus.jsonl", folder / "index")
    build_tiny_policy(folder / "policy", read_vocabulary(folder), TinySettings(hidden_size=64, layers=2), 0)
    return folder


@pytest.fixture(scope="module")
def reference(world: Path) -> dict[str, ScoredTrajectory]:
    return run(world, BM25Retriever(world / "index"), world / "reference")


@pytest.fixture
def service(world: Path) -> Iterator[Service]:
    running = Service(str(world / "index"))
    try:
        running.wait()
        yield running
    finally:
        running.kill()


def run(world: Path, retriever: Retriever, out: Path) -> dict[str, ScoredTrajectory]:
    """Evaluate, or go on with an evaluation, and read back what was kept."""
    plans = read_plans(world / "plans_train.jsonl")
    codec = load_codec(str(world / "policy"))
    environment = make_environment(EnvironmentSettings(preset="minimal", chat="never"), codec)
    driver = RolloutDriver(Reader(codec, {plan.question.id: plan for plan in plans}), codec, environment, retriever, 3)
    questions = [plan.question for plan in plans]
    evaluate(driver, questions, metrics={"em": exact_match}, out=out, batch_size=4, score=score, resamples=50)
    rows = list(read_trajectories(out / "trajectories.jsonl"))
    assert len(rows) == len({row.trajectory.question.id for row in rows})
    return {row.trajectory.question.id: row for row in rows}


def score(trajectories) -> list[ScoredTrajectory]:
    rewards = [exact_match(t.answer, t.question.answers) if t.scorable else None for t in trajectories]
    return [ScoredTrajectory(*pair) for pair in zip(trajectories, rewards, strict=True)]


def seen(row: ScoredTrajectory) -> tuple:
    """What an episode was: its tokens, hits, end and score, but not its seconds."""
    return row.trajectory.token_ids, row.trajectory.hits, row.trajectory.stop, row.reward


def test_a_service_killed_and_restarted_loses_and_misjudges_nothing(
    world: Path, reference: dict[str, ScoredTrajectory], service: Service, tmp_path: Path
) -> None:
    def outage() -> None:
        service.kill()
        threading.Timer(1.0, service.start).start()

    retriever = Interrupted(RemoteRetriever(service.url), 5, outage)
    patient = ResilientRetriever(retriever, retries=60, backoff_s=0.5, breaker_failures=1_000, clock=Steady())
    found = run(world, patient, tmp_path / "run")
    assert retriever.searches > 6, "the outage was felt, and the evaluation went on"
    assert {name: seen(row) for name, row in found.items()} == {name: seen(row) for name, row in reference.items()}
    assert 0.5 < sum(row.reward or 0 for row in reference.values()) / QUESTIONS <= 1.0


def test_without_patience_questions_stay_open_and_a_resumed_evaluation_plays_them(
    world: Path, reference: dict[str, ScoredTrajectory], service: Service, tmp_path: Path
) -> None:
    remote = RemoteRetriever(service.url)
    impatient = ResilientRetriever(Interrupted(remote, 5, service.kill), retries=0, breaker_cooldown_s=0)
    found = run(world, impatient, tmp_path / "run")
    assert len(found) == QUESTIONS, "no question is lost"
    unscored = {name for name, row in found.items() if row.reward is None}
    assert unscored and len(unscored) < QUESTIONS
    assert all(seen(row) == seen(reference[name]) for name, row in found.items() if name not in unscored)
    service.start()
    service.wait()
    resumed = run(world, ResilientRetriever(remote), tmp_path / "run")
    assert {name: seen(row) for name, row in resumed.items()} == {name: seen(row) for name, row in reference.items()}


class Steady:
    """A clock whose pauses do not double without end."""

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, 0.5))


SLOW = """
import pathlib
import time
from sleuth.types import Hit, Passage

class Slow:
    fingerprint = "slow"

    def search(self, queries, k):
        pathlib.Path(__file__).with_name("began").touch()
        time.sleep(1.5)
        return [[Hit(Passage(query, "", "text"), 1.0, 1)] for query in queries]
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_requests_end(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "slow_retriever.py").write_text(SLOW)
    running = Service('{kind: "slow_retriever:Slow"}', tmp_path)
    try:
        running.wait()
        answers: list[requests.Response] = []
        body = {"queries": ["x"], "topk": 1}
        asking = threading.Thread(
            target=lambda: answers.append(requests.post(f"{running.url}/retrieve", json=body, timeout=20))
        )
        asking.start()
        while not (tmp_path / "began").exists():
            assert asking.is_alive()
            time.sleep(0.05)
        running.process.send_signal(number)
        asking.join(20)
        _, errors = running.process.communicate(timeout=30)
        assert [answer.status_code for answer in answers] == [200]
        assert running.process.returncode == 0
        assert errors.strip().endswith("stopped")
        assert "Traceback" not in errors
    finally:
        running.kill()
