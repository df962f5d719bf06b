from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from retrieval.resilient import ResilientRetriever
from sleuth.errors import ConfigError, RetrieverError
from sleuth.types import Hit, Passage

HIT = Hit(Passage("p", "t", "x"), 1.0, 1)


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Scripted:
    """Does what its script says, call by call; afterwards it answers."""

    fingerprint = "scripted"

    def __init__(self, *script: Exception | Callable[[], None]) -> None:
        self.script = list(script)
        self.calls = 0

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.calls += 1
        if self.script:
            step = self.script.pop(0)
            if isinstance(step, Exception):
                raise step
            step()
        return [[HIT]] * len(queries)


def make(inner: Scripted, clock: FakeClock, **settings: float) -> ResilientRetriever:
    defaults = {"timeout_s": 5.0, "retries": 2, "backoff_s": 1.0, "breaker_failures": 3, "breaker_cooldown_s": 60.0}
    return ResilientRetriever(inner, clock=clock, **{**defaults, **settings})  # type: ignore[arg-type]


def test_a_retry_hides_a_passing_failure_and_pauses_double_with_jitter() -> None:
    clock = FakeClock()
    inner = Scripted(OSError("reset"), ValueError("odd"))
    assert make(inner, clock).search(["q"], 1) == [[HIT]]
    assert inner.calls == 3
    assert 0.5 <= clock.slept[0] <= 1.0 <= clock.slept[1] <= 2.0


def test_jitter_is_seeded() -> None:
    def pauses(seed: int) -> list[float]:
        clock = FakeClock()
        make(Scripted(OSError(), OSError()), clock, seed=seed).search(["q"], 1)
        return clock.slept

    assert pauses(1) == pauses(1) != pauses(2)


@pytest.mark.parametrize("error", [OSError("no route"), KeyError("x"), RetrieverError("no route", "start it")])
def test_any_lasting_failure_becomes_a_retriever_error(error: Exception) -> None:
    with pytest.raises(RetrieverError, match=r"\(3 attempts\)") as caught:
        make(Scripted(*[error] * 3), FakeClock()).search(["q"], 1)
    assert caught.value.__cause__ is error
    if isinstance(error, RetrieverError):
        assert caught.value.hint == "start it"


def test_a_callers_mistake_is_neither_retried_nor_held_against_the_retriever() -> None:
    inner = Scripted(ConfigError("k is 0"))
    with pytest.raises(ConfigError, match="k is 0"):
        make(inner, FakeClock(), breaker_failures=1).search(["q"], 0)
    assert inner.calls == 1
    assert make(inner, FakeClock()).search(["q"], 1) == [[HIT]]


def test_lists_that_are_missing_are_a_failure() -> None:
    class Short(Scripted):
        def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
            return super().search(queries, k)[1:]

    with pytest.raises(RetrieverError, match="1 lists of hits for 2 queries"):
        make(Short(), FakeClock()).search(["a", "b"], 1)


def test_the_breaker_opens_probes_once_and_closes() -> None:
    clock = FakeClock()
    inner = Scripted(*[OSError("down")] * 4)
    retriever = make(inner, clock, retries=0)
    for _ in range(3):
        with pytest.raises(RetrieverError, match="down"):
            retriever.search(["q"], 1)
    with pytest.raises(RetrieverError, match="failed 3 times in a row, last with: down"):
        retriever.search(["q"], 1)
    assert inner.calls == 3  # not asked while open
    clock.now += 60
    with pytest.raises(RetrieverError, match="OSError"):
        retriever.search(["q"], 1)  # the probe fails: open for another cool-down
    with pytest.raises(RetrieverError, match="failed 4 times in a row"):
        retriever.search(["q"], 1)
    clock.now += 60
    assert retriever.search(["q"], 1) == retriever.search(["q"], 1) == [[HIT]]
    assert inner.calls == 6


def test_only_one_probe_at_a_time() -> None:
    clock = FakeClock()
    probing, go_on = threading.Event(), threading.Event()

    def probe() -> None:
        probing.set()
        go_on.wait(10)

    inner = Scripted(OSError("down"), probe)
    retriever = make(inner, clock, retries=0, breaker_failures=1)
    with pytest.raises(RetrieverError):
        retriever.search(["q"], 1)
    clock.now += 60
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(retriever.search(["q"], 1)))
    thread.start()
    assert probing.wait(10)
    with pytest.raises(RetrieverError, match="failed 1 times in a row"):
        retriever.search(["q"], 1)
    go_on.set()
    thread.join()
    assert found == [[[HIT]]]


def test_a_success_in_between_resets_the_count() -> None:
    inner = Scripted(OSError(), OSError(), lambda: None, OSError(), OSError(), lambda: None)
    retriever = make(inner, FakeClock(), retries=0)
    for fails in (True, True, False, True, True, False):
        if fails:
            with pytest.raises(RetrieverError):
                retriever.search(["q"], 1)
        else:
            assert retriever.search(["q"], 1) == [[HIT]]


def test_a_hung_search_times_out_and_the_next_one_does_not_wait_for_it() -> None:
    hang = threading.Event()
    retriever = make(Scripted(lambda: hang.wait(30)), FakeClock(), timeout_s=0.05, retries=0)
    started = time.monotonic()
    with pytest.raises(RetrieverError, match=r"did not answer within 0\.05 s"):
        retriever.search(["q"], 1)
    assert retriever.search(["q"], 1) == [[HIT]]
    assert time.monotonic() - started < 5
    hang.set()


def test_threads_are_used_again() -> None:
    retriever = make(Scripted(), FakeClock())
    before = threading.active_count()
    for _ in range(50):
        retriever.search(["q"], 1)
    assert threading.active_count() <= before + 1


def test_a_hung_search_does_not_hold_up_the_end_of_the_process() -> None:
    code = (
        "import time\n"
        "from retrieval.resilient import ResilientRetriever\n"
        "class Hung:\n"
        "    fingerprint = 'x'\n"
        "    def search(self, queries, k): time.sleep(600)\n"
        "try: ResilientRetriever(Hung(), timeout_s=.05, retries=0).search(['q'], 1)\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "did not answer" in done.stdout


def test_a_passage_returned_twice_is_kept_once() -> None:
    other = Passage("o", "t", "y")

    class Twice(Scripted):
        def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
            return [[Hit(other, 0.2, 1), HIT, Hit(other, 0.5, 3)], [HIT]]

    assert make(Twice(), FakeClock()).search(["q", "r"], 3) == [[HIT, Hit(other, 0.5, 2)], [HIT]]
