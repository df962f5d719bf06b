"""Sinks show figures and never stop training."""

import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from sleuth import sinks
from sleuth.errors import DataError, MissingExtraError
from sleuth.sinks import ConsoleSink, JsonlSink, MultiSink, TensorBoardSink, read_metrics


class Recorder:
    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.seen.append((step, dict(values)))

    def close(self) -> None:
        self.closed = True


class Broken:
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        raise RuntimeError("no network")

    def close(self) -> None:
        raise RuntimeError("no network")


def pipe(width: int = 80) -> tuple[io.StringIO, Console]:
    stream = io.StringIO()
    return stream, Console(file=stream, width=width)


def test_jsonl_rows_and_resume(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    sink = JsonlSink(path)
    for step in (1, 2, 3):
        sink.scalars(step, {"reward": step / 10})
    path.write_text(path.read_text() + '{"step": 4, "rew', encoding="utf-8")
    again = JsonlSink(path, keep_to=2)
    again.scalars(3, {"reward": 0.9})
    assert read_metrics(path) == [
        {"step": 1, "reward": 0.1},
        {"step": 2, "reward": 0.2},
        {"step": 3, "reward": 0.9},
    ]


def test_jsonl_is_strict_json_even_for_nan(tmp_path: Path) -> None:
    JsonlSink(tmp_path / "m.jsonl").scalars(1, {"kl": float("nan"), "x": float("-inf")})
    row = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert row == {"step": 1, "kl": "nan", "x": "-inf"}


def test_a_failing_jsonl_sink_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    sink = JsonlSink(tmp_path / "file" / "metrics.jsonl")
    with caplog.at_level(logging.WARNING):
        sink.scalars(1, {"a": 1.0})
        sink.scalars(2, {"a": 1.0})
    assert len(caplog.records) == 1
    assert "metrics.jsonl" in caplog.text


def test_one_broken_sink_does_not_keep_figures_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    sink = MultiSink([Broken(), recorder])
    sink.scalars(1, {"a": 1.0})
    sink.scalars(2, {"a": 2.0})
    sink.close()
    assert recorder.seen == [(1, {"a": 1.0}), (2, {"a": 2.0})]
    assert recorder.closed
    assert [record.getMessage() for record in caplog.records] == [
        "metric sink Broken failed, metrics may be missing there: no network"
    ]


def test_console_columns_line_up_under_their_header() -> None:
    stream, console = pipe()
    sink = ConsoleSink({"train/reward": "reward", "train/kl": "kl"}, console)
    sink.scalars(1, {"train/reward": 0.25, "train/kl": 0.00001234, "hidden": 3.0})
    sink.scalars(20, {"train/reward": 1.0})
    header, first, second = stream.getvalue().splitlines()
    assert header.split() == ["step", "reward", "kl"]
    assert first.split() == ["1", "0.2500", "1.2e-05"]
    assert second.split() == ["20", "1", "-"]
    assert len(header) == len(first) == len(second)
    assert first.index("0.2500") == header.index("reward")


def test_console_prints_other_figures_by_name_on_one_line_in_a_pipe() -> None:
    stream, console = pipe(width=40)
    sink = ConsoleSink(["reward"], console)
    sink.scalars(40, {f"dev/metric_{i}": float("nan") for i in range(9)})
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("step 40")
    assert "dev/metric_8 nan" in line


def test_console_drops_columns_that_a_narrow_terminal_cannot_show() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=26, force_terminal=True, no_color=True, color_system=None)
    sink = ConsoleSink(["a", "b", "c", "d"], console)
    sink.scalars(1, {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0})
    assert all(len(line) <= 26 for line in stream.getvalue().splitlines())
    assert stream.getvalue().splitlines()[-1].split() == ["1", "1", "2"]


def test_tensorboard_events_can_be_read_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="extra not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardSink(tmp_path)
    sink.scalars(3, {"reward": 0.5})
    sink.scalars(4, {"reward": 0.75})
    sink.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert "reward" in events.Tags()["tensors"]
    assert [event.step for event in events.Tensors("reward")] == [3, 4]


def test_tensorboard_absent_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"tensorboard.*pip install 'sleuth-rl\[tensorboard\]'"):
        TensorBoardSink(tmp_path)


def test_read_metrics_keeps_what_stands_before_a_torn_line_but_not_a_broken_file(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"st', encoding="utf-8")
    assert read_metrics(path) == [{"step": 1}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 2"):
        read_metrics(path)
    with pytest.raises(DataError, match="No such file"):
        read_metrics(tmp_path / "none.jsonl")
