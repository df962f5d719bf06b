"""Progress as plain lines: what they say, and when there are any."""

from __future__ import annotations

import threading

import pytest

from sleuth.progress import Tally, duration, expect, plain_progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_says_how_much_is_done_and_about_how_long_the_rest_takes():
    clock = Clock()
    tally = Tally("encoding corpus.jsonl", clock)
    clock.now += 20
    assert tally.line() == "encoding corpus.jsonl: 20 s so far"
    tally(32)
    assert tally.line() == "encoding corpus.jsonl: 32, 20 s so far"
    expect(tally, 48_297)
    assert tally.line() == "encoding corpus.jsonl: 32 of 48,297, 0 %, 20 s so far"
    clock.now += 280
    tally(12_288)
    # 12,256 in 280 s since counting began, 36,009 to go
    assert tally.line() == "encoding corpus.jsonl: 12,288 of 48,297, 25 %, about 14 min left"
    clock.now += 1_600
    tally(48_297)
    assert tally.line() == "encoding corpus.jsonl: 48,297 of 48,297, 100 %, 32 min so far"
    assert tally.last_line() == "encoding corpus.jsonl: 48,297 of 48,297, done in 32 min"


def test_what_was_done_before_says_nothing_about_the_pace():
    clock = Clock()
    tally = Tally("evaluating", clock)
    tally(900, 1_000)
    clock.now += 100
    tally(950, 1_000)
    assert tally.line() == "evaluating: 950 of 1,000, 95 %, about 2 min left"


def test_without_a_count_the_time_is_told():
    clock = Clock()
    tally = Tally("indexing", clock)
    clock.now += 7_500
    assert tally.line() == "indexing: 2 h 5 min so far"
    assert tally.last_line() == "indexing: done in 2 h 5 min"


def test_who_only_counts_need_not_take_a_total():
    seen: list[int] = []
    expect(seen.append, 10)
    expect(None, 10)
    assert seen == []


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (3_600, "60 min"), (5_400, "1 h 30 min")]
)
def test_durations(seconds: float, said: str):
    assert duration(seconds) == said


def test_lines_come_now_and_then_though_nothing_is_counted_and_at_the_end():
    lines: list[str] = []
    three = threading.Event()

    def write(line: str) -> None:
        lines.append(line)
        if len(lines) == 3:
            three.set()

    with plain_progress("searching", write, first_s=0.05, every_s=0.01) as tally:
        tally(3, 4)
        assert three.wait(10)
    assert all(line.startswith("searching: 3 of 4, 75 %") for line in lines[:3])
    assert lines[-1].startswith("searching: 3 of 4, done in ")


def test_short_work_and_work_that_fails_end_without_a_line():
    lines: list[str] = []
    with plain_progress("searching", lines.append, first_s=60) as tally:
        tally(4, 4)
    with pytest.raises(ValueError, match="broken"), plain_progress("searching", lines.append, first_s=60):
        raise ValueError("broken")
    assert lines == []
    assert "progress" not in [thread.name for thread in threading.enumerate()]
