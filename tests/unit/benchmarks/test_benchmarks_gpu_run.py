"""Stages under their limits: what is done stays done, what is killed goes on, and only small files come home."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu import run
from benchmarks.gpu.budget import SETUP, STAGES, Ledger, Stage, left
from benchmarks.gpu.pieces import cut
from benchmarks.gpu.results import FILES, SUMMARY
from sleuth.errors import ArtifactError

ROOT = Path(__file__).parents[3]
WRITES = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{\"found\": 7}')"
SLEEPS = "import time; print('begun', flush=True); time.sleep(60)"
FAILS = "print('looked'); raise SystemExit('error: nothing here')"


@pytest.fixture
def carried(tmp_path: Path) -> Path:
    """A load without wheels."""
    (tmp_path / "load").mkdir()
    (tmp_path / "load" / "config.yaml").write_text("out: x\n")
    cut(tmp_path / "load", tmp_path / "pieces", {"python": None})
    return tmp_path / "pieces"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "GRACE", 0.5)
    monkeypatch.setattr(run, "LEAST", 0.05)
    monkeypatch.setattr(run, "_TICK", 0.05)


def call(place: Path, pieces: list[Path], stages: dict[str, str], *options: str) -> int:
    """One call of the program whose stages run this code; the others are done at once."""
    figures = place / "work" / "stages"

    def command(stage: Stage, _seconds: float) -> list[str]:
        return [sys.executable, "-c", stages.get(stage.name, WRITES), str(figures / f"{stage.name}.json")]

    given = [*map(str, pieces), "--work", str(place / "work"), "--out", str(place / "out"), *options]
    return run.main(given, command)


def summary(place: Path) -> dict[str, dict[str, object]]:
    return json.loads((place / "out" / SUMMARY).read_text())["stages"]


def test_stages_run_once(tmp_path: Path, carried: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, [carried], {}) == run.DONE
    told = summary(tmp_path)
    assert list(told) == ["setup", *(stage.name for stage in STAGES)]
    assert told["speed"]["figures"] == {"found": 7} and told["speed"]["attempts"] == 1
    assert call(tmp_path, [], {"speed": FAILS}) == run.DONE, "the pieces are not asked for again"
    assert summary(tmp_path)["speed"]["attempts"] == 1
    (tmp_path / "work" / "ledger.json").unlink()
    assert call(tmp_path, [], {"speed": FAILS}) == run.DONE, "nor what was done, whatever the ledger has"
    assert "train       done" in capsys.readouterr().out


def test_a_failure_is_told_and_the_others_go_on(
    tmp_path: Path, carried: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tmp_path, [carried], {"precision": FAILS}) == run.FAILED
    told = summary(tmp_path)
    assert (told["precision"]["state"], told["precision"]["why"]) == ("failed", "error: nothing here")
    assert told["train"]["state"] == "done"
    assert "  looked" in capsys.readouterr().out
    assert call(tmp_path, [], {}) == run.DONE, "the next call tries it again"
    assert summary(tmp_path)["precision"]["attempts"] == 2


def test_nothing_follows_a_machine_that_will_not_do(tmp_path: Path, carried: Path) -> None:
    assert call(tmp_path, [carried], {"doctor": FAILS}) == run.FAILED
    assert [one["attempts"] for one in summary(tmp_path).values()] == [1, 1, 0, 0, 0]


def test_a_stage_is_stopped_when_its_time_is_up(tmp_path: Path, carried: Path) -> None:
    begun = time.monotonic()
    assert call(tmp_path, [carried], {"train": SLEEPS}, "--only", "train", "--minutes", "0.04") == run.LEFT
    assert time.monotonic() - begun < 40
    told = summary(tmp_path)["train"]
    assert (told["state"], told["why"]) == ("stopped", run.TIME_IS_UP)
    assert float(str(told["seconds"])) >= 0.8
    assert call(tmp_path, [], {}, "--only", "train", "--minutes", "0.04") == run.LEFT, "no time is left"
    assert call(tmp_path, [], {}, "--only", "train", "--minutes", "1") == run.DONE


def test_no_process_lasts_longer_than_it_may_at_once(
    tmp_path: Path, carried: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "AT_ONCE", 1.5)  # a slow machine may take more processes, each of which is as short
    third = "import os, sys; open(sys.argv[1] + '.n', 'a').write('x')\n" + (
        f"if os.path.getsize(sys.argv[1] + '.n') < 3:\n  {SLEEPS}\nelse:\n  {WRITES}"
    )
    assert call(tmp_path, [carried], {"train": third}, "--only", "train") == run.DONE
    assert summary(tmp_path)["train"]["attempts"] >= 3, "the next process of the stage went on"


def test_a_call_ends_in_its_own_time(tmp_path: Path, carried: Path) -> None:
    begun = time.monotonic()
    assert call(tmp_path, [carried], {"speed": SLEEPS}, "--only", "speed", "--call-minutes", "0.06") == run.LEFT
    assert time.monotonic() - begun < 40
    assert summary(tmp_path)["speed"]["state"] == "stopped"


def test_a_killed_run_goes_on_and_its_time_counts(tmp_path: Path, carried: Path) -> None:
    code = f"""
import sys
from benchmarks.gpu import run
run.main({[str(carried), "--work", str(tmp_path / "work"), "--only", "speed"]!r},
         lambda stage, seconds: [sys.executable, "-c", {SLEEPS!r}])
"""
    killed = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
    assert killed.stdout is not None
    while b"begun" not in killed.stdout.readline():
        pass
    time.sleep(1.2)
    killed.kill()
    killed.wait()
    killed.stdout.close()
    ledger = Ledger.open(tmp_path / "work" / "ledger.json")
    assert ledger.spent["speed"].seconds > 0.5
    assert (ledger.spent["speed"].state, ledger.spent["speed"].why) == ("stopped", "interrupted")
    assert call(tmp_path, [], {}, "--only", "speed") == run.DONE
    assert summary(tmp_path)["speed"]["attempts"] == 2
    assert Ledger.open(tmp_path / "work" / "ledger.json").spent["speed"].seconds > ledger.spent["speed"].seconds


def test_a_stage_ends_with_its_parent(tmp_path: Path) -> None:
    child = f"""
import time
import zipfile
from pathlib import Path
from benchmarks.gpu.orphans import end_with_parent
end_with_parent()
Path({str(tmp_path / "pid")!r}).write_text(str(__import__("os").getpid()) + "\\n")
time.sleep(60)
"""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    started = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT)
    until = time.monotonic() + 20
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith("\n"):
        assert time.monotonic() < until
        time.sleep(0.05)
    started.kill()
    started.wait()
    pid = int((tmp_path / "pid").read_text())
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < until, os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def test_only_small_files_come_home(tmp_path: Path, carried: Path) -> None:
    made = tmp_path / "work" / "run"
    (made / "grpo" / "policy").mkdir(parents=True)
    (made / "grpo" / "policy" / "config.json").write_text("{}")
    (made / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    (made / "model.safetensors").write_bytes(b"w")
    (made / "trajectories.jsonl").write_bytes(os.urandom(60_000))
    assert call(tmp_path, [carried], {}, "--mib", "0.04") == run.DONE
    home = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert home.keys() == {SUMMARY, FILES} and sum(home.values()) <= 0.04 * 2**20
    with tarfile.open(tmp_path / "out" / FILES) as archive:
        came = set(archive.getnames())
    assert "run/metrics.jsonl" in came and "stages/train.log" in came
    assert not {name for name in came if "policy" in name or "safetensors" in name or "trajectories" in name}
    assert call(tmp_path, [carried], {}) == run.DONE
    with tarfile.open(tmp_path / "out" / FILES) as archive:
        assert "run/trajectories.jsonl" in archive.getnames()
    assert summary(tmp_path)["train"]["last_row"] == {"step": 1, "reward": 0.5}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["nowhere"], "no folder nowhere"),
        ([], "there is no pieces.json"),
        (["--minutes", "0"], "must be above 0"),
        (["--only", "sped"], "no stage 'sped' (did you mean 'speed'?)"),
    ],
)
def test_wrong_commands_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    try:
        status = run.main([*options, "--work", str(tmp_path / "work")])
    except SystemExit as error:
        status = int(str(error.code))
    assert status == run.WRONG and said in capsys.readouterr().err


def test_another_load_or_python_is_refused(tmp_path: Path, carried: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, [carried], {}) == run.DONE
    (tmp_path / "load" / "config.yaml").write_text("out: y\n")
    cut(tmp_path / "load", tmp_path / "other", {"python": "2.7"})
    assert call(tmp_path, [tmp_path / "other"], {}) == run.WRONG
    assert "holds another load" in capsys.readouterr().err
    assert run.main([str(tmp_path / "other"), "--work", str(tmp_path / "new")]) == run.WRONG
    assert "the wheels are for Python 2.7, and this is 3." in capsys.readouterr().err


def wheel(folder: Path, content: str) -> None:
    """A wheel of one module, ``carried_module``."""
    folder.mkdir(parents=True)
    about = "carried_module-1.0.dist-info"
    files = {
        "carried_module.py": content,
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: carried_module\nVersion: 1.0\nRequires-Dist: no-such\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "",
    }
    with zipfile.ZipFile(folder / "carried_module-1.0-py3-none-any.whl", "w") as packed:
        for name, text in files.items():
            packed.writestr(name, text)


def test_wheels_are_installed_without_a_network(
    tmp_path: Path, carried: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel(tmp_path / "load" / "wheels", "x = 7")
    cut(tmp_path / "load", tmp_path / "with", {"python": f"{sys.version_info.major}.{sys.version_info.minor}"})
    imports = f"import carried_module as m\nassert m.x == 7 and '/site-packages/' in m.__file__\n{WRITES}"
    assert call(tmp_path, [tmp_path / "with"], {"doctor": imports}) == run.DONE, "datasets asks for that name"

    (tmp_path / "load" / "wheels" / "carried_module-1.0-py3-none-any.whl").write_bytes(b"no zip")
    cut(tmp_path / "load", tmp_path / "broken", {"python": None})
    assert run.main([str(tmp_path / "broken"), "--work", str(tmp_path / "other")]) == run.WRONG
    assert "error: the wheels do not install: " in capsys.readouterr().err
    assert not (tmp_path / "other" / "site-packages").exists()


def test_what_a_stage_leaves_over_the_next_ones_have(tmp_path: Path) -> None:
    stages = [SETUP, *STAGES]
    ledger = Ledger(tmp_path / "ledger.json")
    whole = sum(stage.share for stage in stages)
    assert left(stages, stages[-1], ledger, whole) == pytest.approx(60 * whole)
    ledger.of(SETUP).seconds = 30.0
    assert left(stages, STAGES[0], ledger, whole) == pytest.approx(60 * (SETUP.share + STAGES[0].share) - 30)
    ledger.of(STAGES[1]).seconds = 10_000.0
    assert left(stages, STAGES[2], ledger, whole) < 0
    ledger.save()
    assert Ledger.open(ledger.path) == ledger
    ledger.path.write_text("{")
    with pytest.raises(ArtifactError, match="is damaged"):
        Ledger.open(ledger.path)
