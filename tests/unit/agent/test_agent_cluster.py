"""The pool and the controller by themselves: who may have workers, and which weights are held."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from agent.cluster.controller import Controller
from agent.cluster.interface import ClusterError, Needs, WorkerLostError
from agent.cluster.local import LocalCluster
from agent.cluster.pool import Crew, Patience, Played, RolloutPool
from agent.cluster.roles import _check_fingerprints
from agent.cluster.worker import RolloutWorker
from agent.policies.scripted import ScriptedPolicy
from agent.rollout import RolloutDriver
from envs.config import EnvironmentSettings
from envs.factory import make_environment
from sleuth.errors import ConfigError, DataError
from sleuth.types import Question, Sampling, Segment, Trajectory

QUESTIONS = [Question(str(i), "?", ("x",)) for i in range(4)]
IMPATIENT = Patience(deadline_s=60.0, retries=1, start_s=0.5)


class Hand:
    """A worker whose shards are answered by the test."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.out: list[tuple[Future[Any], tuple[Any, ...]]] = []
        self.called = threading.Semaphore(0)

    def call(self, method: str, *args: Any) -> Future[Any]:
        answer: Future[Any] = Future()
        if method == "status":
            answer.set_result({})
        else:
            self.out.append((answer, args))
            self.called.release()
        return answer

    def finish(self) -> None:
        answer, (_, questions, _, _) = self.out.pop(0)
        times = {"generate": 0.1}
        played = [Trajectory(q, (Segment("prompt", (1,)),), (), "answer", times) for q in questions]
        answer.set_result(Played(played, 0.1, 0.0, self.name))

    def kill(self) -> None:
        raise AssertionError("nobody asked for that")


class Running:
    """A batch in a thread of its own."""

    def __init__(self, pool: RolloutPool, questions: list[Question]) -> None:
        self.found: list[Trajectory] = []
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(pool, questions), daemon=True)
        self._thread.start()

    def _run(self, pool: RolloutPool, questions: list[Question]) -> None:
        try:
            self.found = pool.run(None, questions, Sampling(), list(range(len(questions))))
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def join(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()


def test_a_batch_waits_for_workers_that_another_has() -> None:
    worker = Hand("worker")
    pool = RolloutPool(Crew([worker]), None, IMPATIENT)  # type: ignore[arg-type]
    first = Running(pool, QUESTIONS[:2])
    assert worker.called.acquire(timeout=30)
    second = Running(pool, QUESTIONS[2:])
    second._thread.join(3 * IMPATIENT.start_s)
    assert second.error is None
    worker.finish()
    assert worker.called.acquire(timeout=30)
    worker.finish()
    first.join()
    second.join()
    assert [t.question.id for t in first.found + second.found] == ["0", "1", "2", "3"]


def test_an_error_of_one_worker_leaves_the_others_free() -> None:
    workers = [Hand("a"), Hand("b")]
    pool = RolloutPool(Crew(workers), None, IMPATIENT)  # type: ignore[arg-type]
    running = Running(pool, QUESTIONS)
    assert all(worker.called.acquire(timeout=30) for worker in workers)
    workers[0].out.pop()[0].set_exception(DataError("a broken row"))
    running.join()
    assert isinstance(running.error, DataError)
    workers[1].finish()
    assert {worker.name for worker in (pool.crew.take(), pool.crew.take()) if worker} == {"a", "b"}


def test_learners_that_began_again_publish_lower_versions() -> None:
    controller = Controller([Hand("worker")], None, IMPATIENT, keep=2)  # type: ignore[arg-type]
    for version in (14, 15, 10, 11):
        controller.publish(version, [f"weights {version}"])
        assert controller._await(version) == f"weights {version}"
    assert list(controller._weights) == [10, 11]


def test_learners_that_began_again_are_not_given_weights_of_their_earlier_life() -> None:
    controller = Controller([Hand("worker")], None, IMPATIENT, keep=2)  # type: ignore[arg-type]
    controller.publish(10, ["old 10"])
    controller.forget()
    threading.Timer(0.2, lambda: controller.publish(10, ["new 10"])).start()
    assert controller._await(10) == "new 10"


class Reborn:
    """An actor that dies in its first life, and for good in its last one."""

    name = "retriever 0"

    def __init__(self, deaths: int, for_good: bool = False) -> None:
        self.deaths, self.for_good = deaths, for_good

    def call(self, _method: str) -> Future[str]:
        answer: Future[str] = Future()
        self.deaths -= 1
        if self.deaths < 0:
            answer.set_result("print")
        else:
            answer.set_exception(WorkerLostError(self.name, "it fell over", self.for_good))
        return answer


def test_a_retriever_that_dies_while_it_opens_is_asked_again() -> None:
    _check_fingerprints([Reborn(2)], "print", 30.0)
    with pytest.raises(ClusterError, match="died while it opened"):
        _check_fingerprints([Reborn(1, for_good=True)], "print", 30.0)
    with pytest.raises(ClusterError, match="different index"):
        _check_fingerprints([Reborn(0)], "other", 30.0)


def test_with_nobody_there_a_batch_does_not_wait_for_ever() -> None:
    worker = Hand("worker")
    crew = Crew([worker])
    assert crew.take() is worker
    crew._lent.clear()  # gone, and called back in vain
    with pytest.raises(ClusterError, match="no rollout worker came back"):
        RolloutPool(crew, None, IMPATIENT).run(None, QUESTIONS, Sampling(), [0, 1, 2, 3])  # type: ignore[arg-type]


class Stumbles:
    """A controller's environments, which raise ``error``."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def environment(self) -> Any:
        raise self.error


def test_what_no_worker_played_is_unscored_whatever_its_environment_does() -> None:
    pool = RolloutPool(Crew([]), Stumbles(KeyError("x")), IMPATIENT)  # type: ignore[arg-type]
    lost = pool._unplayed(QUESTIONS[0])
    assert (lost.stop, lost.segments, lost.scorable) == ("worker_lost", (), False)
    assert str(lost.failure) == "its rollout worker failed: WorkerLostError: lost or late too often"
    with pytest.raises(ConfigError, match="no preset"):
        RolloutPool(Crew([]), Stumbles(ConfigError("no preset")), IMPATIENT)._unplayed(QUESTIONS[0])  # type: ignore[arg-type]


def test_an_environment_that_raises_on_a_worker_comes_back_with_its_traceback(tiny, tmp_path) -> None:
    """Through a worker and the pool: pickled as for another process, unscored, and the others are played."""
    policy = ScriptedPolicy(tiny[1], lambda question, turn: "<answer> Paris </answer>")
    inner = make_environment(EnvironmentSettings(preset="minimal", chat="never"), tiny[1])

    class Faulty:
        def __init__(self) -> None:
            self._inner = inner()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def reset(self, question: Question) -> Any:
            if question.id == "2":
                raise KeyError("table")
            return self._inner.reset(question)

    worker = RolloutWorker.__new__(RolloutWorker)
    worker._policy, worker._version, worker._playing = policy, 0, threading.Lock()
    worker._driver = RolloutDriver(policy, tiny[1], Faulty, None, 1)
    cluster = LocalCluster()
    actor = cluster.spawn("worker", lambda: worker, Needs("test"))
    pool = RolloutPool(Crew([actor]), None, IMPATIENT)  # type: ignore[arg-type]
    found = pickle.loads(pickle.dumps(pool.run(SimpleNamespace(version=0), QUESTIONS, Sampling(0.0), [0, 1, 2, 3])))
    cluster.close()
    assert [t.stop for t in found] == ["answer", "answer", "environment_failed", "answer"]
    assert found[2].failure.error == "KeyError: 'table'" and "in reset" in found[2].failure.trace
