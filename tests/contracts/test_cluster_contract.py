"""One suite for both clusters: actors, references, deaths; the pool and the retriever's client on top of them."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from agent.cluster.config import ClusterSettings
from agent.cluster.identity import code_identity
from agent.cluster.interface import ClusterError, Needs, WorkerLostError
from agent.cluster.local import LocalCluster
from agent.cluster.pool import Crew, Patience, Played, RolloutPool
from agent.cluster.retrieval import RetrieverClient, RetrieverPlan, RetrieverServer
from agent.cluster.signals import FAULTS, handler_of
from sleuth.errors import DataError, RetrieverError
from sleuth.types import Hit, Observation, Passage, Question, Sampling, Segment, Trajectory

PATIENT = Patience(deadline_s=60.0, retries=3, start_s=60.0)


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.e2e)])
def cluster(request, tmp_path_factory):
    if request.param == "local":
        made = LocalCluster()
        yield made
        made.close()
        return
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    from agent.cluster.ray_cluster import RayCluster

    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    token = tmp_path_factory.mktemp("ray") / "token"
    handlers = [handler_of(number)[:8] for number in FAULTS]
    made = RayCluster(ClusterSettings(object_store_mb=100), [], token, room=16)
    assert [handler_of(number)[:8] for number in FAULTS] == handlers, "a Java machine here would die of a fault"
    yield made
    handlers = [handler_of(number)[:8] for number in FAULTS]
    made.close()
    assert [handler_of(number)[:8] for number in FAULTS] == handlers
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def let_go(tmp_path: Path):
    """A thread cannot be killed: one that still waits when its test is over would keep the process from ending."""
    yield
    (tmp_path / "go").touch()


class Counter:
    """Counts its calls, fails on demand, waits for a file; a fresh one has counted nothing."""

    def __init__(self, broken: bool = False) -> None:
        if broken:
            raise DataError("no such index", "make it")
        self.calls = 0

    def count(self) -> int:
        self.calls += 1
        return self.calls

    def fail(self) -> None:
        raise DataError("line 3 is broken", "mend it")

    def total(self, array: np.ndarray, more: int) -> float:
        return float(array.sum()) + more

    def wait_for(self, started: Path, go: Path) -> str:
        started.touch()
        while not go.exists():
            time.sleep(0.02)
        return "went"


class Broken:
    def __call__(self) -> Counter:
        return Counter(broken=True)


def test_calls_are_answered_by_one_object(cluster):
    actor = cluster.spawn("counter", Counter, Needs("test"))
    assert [actor.call("count").result(60) for _ in range(3)] == [1, 2, 3]


def test_an_error_arrives_as_itself(cluster):
    actor = cluster.spawn("counter", Counter, Needs("test"))
    with pytest.raises(DataError) as caught:
        actor.call("fail").result(60)
    assert (caught.value.message, caught.value.hint) == ("line 3 is broken", "mend it")
    assert actor.call("count").result(60) == 1


def test_an_error_of_making_it_arrives_as_itself(cluster):
    actor = cluster.spawn("counter", Broken(), Needs("test"))
    with pytest.raises(DataError, match="no such index"):
        actor.call("count").result(60)


def test_a_reference_holds_the_value_as_it_was_put(cluster):
    array = np.ones(1000, dtype=np.float32)
    held = cluster.put(array)
    array[:] = 7
    actor = cluster.spawn("counter", Counter, Needs("test"))
    assert actor.call("total", held, 5).result(60) == 1005.0


def killed_in_call(actor, tmp_path: Path):
    """The future of a call that the actor was in the middle of when it was killed."""
    started, go = tmp_path / "started", tmp_path / "go"
    answer = actor.call("wait_for", started, go)
    until(started.exists)
    actor.kill()
    return answer


def until(true, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_killed_actor_comes_back_blank(cluster, tmp_path: Path):
    actor = cluster.spawn("counter", Counter, Needs("test", restarts=1))
    assert actor.call("count").result(60) == 1
    with pytest.raises(WorkerLostError) as caught:
        killed_in_call(actor, tmp_path).result(60)
    assert not caught.value.for_good
    assert answered_again(actor) == 1


def answered_again(actor) -> int:
    while True:
        try:
            return actor.call("count").result(60)
        except WorkerLostError as error:
            assert not error.for_good
            time.sleep(0.1)


def test_without_a_restart_left_it_is_gone_for_good(cluster, tmp_path: Path):
    actor = cluster.spawn("counter", Counter, Needs("test"))
    with pytest.raises(WorkerLostError) as caught:
        killed_in_call(actor, tmp_path).result(60)
    assert caught.value.for_good
    with pytest.raises(WorkerLostError) as caught:
        actor.call("count").result(60)
    assert caught.value.for_good


class Player:
    """Plays by echoing seeds; while a file ``hold-<question>`` lies in ``folder``, that question takes for ever."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def status(self) -> dict[str, int]:
        return {"pid": os.getpid()}

    def play(self, weights, questions, sampling, seeds) -> Played:
        for question in questions:
            (self.folder / f"started-{question.id}").touch()
            while (self.folder / f"hold-{question.id}").exists():
                time.sleep(0.02)
        return Played([played(q, seed, weights) for q, seed in zip(questions, seeds, strict=True)], 0.1, 0.0, "")


class MakePlayer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> Player:
        return Player(self.folder)


def played(question: Question, seed: int, version: int) -> Trajectory:
    return Trajectory(question, (Segment("prompt", (seed, version)),), (), "answer", {"generate": 1.0})


class Template:
    """Tells what the prompt of a question that nobody played looks like."""

    def environment(self):
        return self

    def reset(self, question: Question) -> Observation:
        return Observation((1, 2), question.text)


QUESTIONS = [Question(str(i), f"question {i}", ("x",)) for i in range(6)]
SEEDS = list(range(100, 106))


def pool_of(cluster, folder: Path, workers: int, patience: Patience) -> RolloutPool:
    actors = [cluster.spawn(f"player {i}", MakePlayer(folder), Needs("test", restarts=3)) for i in range(workers)]
    pool = RolloutPool(Crew(actors), Template(), patience)
    pool.crew.wait_ready(120)
    return pool


def run_in_thread(pool: RolloutPool) -> tuple[threading.Thread, list[Trajectory]]:
    found: list[Trajectory] = []
    thread = threading.Thread(target=lambda: found.extend(pool.run(9, QUESTIONS, Sampling(), SEEDS)))
    thread.start()
    return thread, found


@pytest.mark.parametrize("workers", [1, 3])
def test_the_order_of_questions_and_seeds_does_not_depend_on_the_workers(cluster, tmp_path: Path, workers: int):
    found = pool_of(cluster, tmp_path, workers, PATIENT).run(9, QUESTIONS, Sampling(), SEEDS)
    assert [(t.question.id, t.segments[0].token_ids) for t in found] == [
        (q.id, (seed, 9)) for q, seed in zip(QUESTIONS, SEEDS, strict=True)
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_questions_of_a_killed_worker_are_played_again_none_twice(cluster, tmp_path: Path, workers: int):
    pool = pool_of(cluster, tmp_path, workers, PATIENT)
    (tmp_path / "hold-0").touch()
    thread, found = run_in_thread(pool)
    until((tmp_path / "started-0").exists)
    until(lambda: len(pool.crew._idle) == workers - 1)
    (victim,) = set(pool.crew.all) - set(pool.crew._idle)
    victim.kill()
    until(lambda: pool.counts.lost == 1)
    (tmp_path / "hold-0").unlink()
    thread.join(120)
    assert [t.question.id for t in found] == [q.id for q in QUESTIONS]
    assert all(t.stop == "answer" for t in found)
    assert pool.counts.trajectories == 6 and pool.counts.unscored == 0


def test_a_late_shard_is_sent_once_more_and_the_first_answer_counts(cluster, tmp_path: Path):
    pool = pool_of(cluster, tmp_path, 2, Patience(deadline_s=0.6, retries=3, start_s=60.0))
    (tmp_path / "hold-0").touch()
    thread, found = run_in_thread(pool)
    until((tmp_path / "started-3").exists)
    until(lambda: pool.counts.resent == 1)
    (tmp_path / "hold-0").unlink()
    thread.join(60)
    assert [t.question.id for t in found] == [q.id for q in QUESTIONS]
    assert pool.counts.unscored == 0 and all(t.stop == "answer" for t in found)


def test_what_is_late_twice_is_unscored_and_frees_its_worker(cluster, tmp_path: Path):
    pool = pool_of(cluster, tmp_path, 2, Patience(deadline_s=0.6, retries=3, start_s=60.0))
    (tmp_path / "hold-0").touch()
    found = pool.run(9, QUESTIONS, Sampling(), SEEDS)
    assert [t.stop for t in found] == ["worker_lost"] * 3 + ["answer"] * 3
    assert not any(t.scorable for t in found[:3])
    assert found[0].segments == (Segment("prompt", (1, 2)),)
    counts = pool.counts
    assert (counts.questions, counts.trajectories, counts.unscored) == (6, 3, 3)
    (tmp_path / "hold-0").unlink()
    until(lambda: len(pool.crew._idle) == 2)  # those that were stuck were ended and came back


def test_with_every_worker_gone_the_run_ends_in_one_line(cluster, tmp_path: Path):
    actor = cluster.spawn("player", MakePlayer(tmp_path), Needs("test"))
    pool = RolloutPool(Crew([actor]), Template(), PATIENT)
    pool.crew.wait_ready(120)
    (tmp_path / "hold-0").touch()
    thread_error: list[BaseException] = []

    def play() -> None:
        try:
            pool.run(9, QUESTIONS, Sampling(), SEEDS)
        except ClusterError as error:
            thread_error.append(error)

    thread = threading.Thread(target=play)
    thread.start()
    until((tmp_path / "started-0").exists)
    actor.kill()
    thread.join(60)
    (tmp_path / "hold-0").unlink()
    assert "every rollout worker is gone" in str(thread_error[0])


class Index:
    """Finds the query itself; slow, so that callers meet. ``hold FILE`` writes it and is stuck, once."""

    fingerprint = "index-1"

    def search(self, queries, k):
        time.sleep(0.2)
        for file in (Path(query.removeprefix("hold ")) for query in queries if query.startswith("hold ")):
            if not file.exists():
                file.touch()
                time.sleep(3600)
        return [[Hit(Passage(q, q, q), 1.0, 1)] for q in queries]


class MakeServer:
    def __call__(self) -> RetrieverServer:
        return RetrieverServer(RetrieverPlan(Index, code_identity()))


def test_callers_share_searches(cluster):
    actor = cluster.spawn("retriever", MakeServer(), Needs("test", concurrency=16))
    client = RetrieverClient([actor], "index-1", 60.0)
    assert client.search(["warm"], 1)[0][0].passage.id == "warm"
    found: dict[int, str] = {}

    def ask(caller: int) -> None:
        found[caller] = client.search([f"query {caller}"], 1)[0][0].passage.id

    threads = [threading.Thread(target=ask, args=[caller]) for caller in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {caller: f"query {caller}" for caller in range(8)}
    status = actor.call("status").result(60)
    assert status["calls"] == 9 and status["searches"] < 9


def test_a_killed_retriever_is_asked_again(cluster, tmp_path: Path):
    actor = cluster.spawn("retriever", MakeServer(), Needs("test", restarts=1, concurrency=16))
    client = RetrieverClient([actor], "index-1", 60.0)
    assert client.search(["warm"], 1)
    held = f"hold {tmp_path / 'begun'}"
    answer: list[str] = []
    thread = threading.Thread(target=lambda: answer.append(client.search([held], 1)[0][0].passage.id))
    thread.start()
    until((tmp_path / "begun").exists)
    actor.kill()
    thread.join(120)
    assert answer == [held] and client.retried >= 1


def test_a_retriever_that_never_comes_back_is_an_error_of_retrieval(cluster):
    actor = cluster.spawn("retriever", MakeServer(), Needs("test", concurrency=16))
    assert RetrieverClient([actor], "index-1", 60.0).search(["warm"], 1)
    actor.kill()
    with pytest.raises(RetrieverError):
        RetrieverClient([actor], "index-1", 1.0).search(["a"], 1)


def test_another_index_is_refused(cluster):
    actor = cluster.spawn("retriever", MakeServer(), Needs("test", concurrency=16))
    with pytest.raises(RetrieverError, match="different index"):
        RetrieverClient([actor], "index-2", 60.0).search(["a"], 1)
