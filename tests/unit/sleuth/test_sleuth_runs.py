"""A run folder holds one run, belongs to one process, and never swallows other files."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sleuth.artifacts import read_manifest, write_manifest
from sleuth.errors import ArtifactError
from sleuth.runs import RunFolder

CONFIG = {"seed": 1, "grpo": {"steps": 40, "beta": 0.1}, "parts": [{"kind": "em"}]}

HOLD = """
import sys, time
from sleuth.runs import RunFolder
with RunFolder(sys.argv[1]).claim({"seed": 1}):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_new_run_saves_its_config_and_manifest(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a" / "run")
    with run.claim(CONFIG):
        assert yaml.safe_load((run.path / "config.yaml").read_text()) == CONFIG
    assert run.read_config() == CONFIG
    assert read_manifest(run.path, "run", "")["versions"]["sleuth-rl"]


def test_stages_are_marked_and_survive_resume_but_not_overwrite(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.claim(CONFIG):
        assert not run.stage_done("warmstart")
        assert run.stage_info("warmstart") == {}
        run.mark_done("warmstart", {"loss": 0.5})
    with run.claim(CONFIG, resume=True):
        assert run.stage_done("warmstart")
        assert run.stage_info("warmstart") == {"loss": 0.5}
    with run.claim({"seed": 2}, overwrite=True):
        assert not run.stage_done("warmstart")
        assert run.read_config() == {"seed": 2}


def test_a_second_run_is_refused_with_what_to_do(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.claim(CONFIG):
        (run.path / "result.txt").write_text("precious")
    with pytest.raises(ArtifactError, match=r"already holds a run.*--resume.*--overwrite"), run.claim(CONFIG):
        pass
    assert (run.path / "result.txt").read_text() == "precious"


def test_resume_names_the_setting_that_differs(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.claim(CONFIG):
        pass
    other = {**CONFIG, "grpo": {"steps": 80, "beta": 0.1}}
    with pytest.raises(ArtifactError, match=r"started with grpo\.steps = 40, not 80"), run.claim(other, resume=True):
        pass
    assert run.read_config() == CONFIG
    with run.claim(other, resume=True, may_differ=["grpo.steps"]):
        assert run.read_config() == other
    with pytest.raises(ArtifactError, match="parts"), run.claim({**other, "parts": []}, resume=True):
        pass


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_of_other_files_is_never_touched(tmp_path: Path, options: dict[str, bool]) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with (
        pytest.raises(ArtifactError, match="not empty and is not a Sleuth run"),
        RunFolder(tmp_path).claim(CONFIG, **options),
    ):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_artefact_of_another_kind_is_never_touched(tmp_path: Path) -> None:
    write_manifest(tmp_path, "index", {})
    with pytest.raises(ArtifactError, match="kind 'index'"), RunFolder(tmp_path).claim(CONFIG, overwrite=True):
        pass
    assert read_manifest(tmp_path, "index", "")["kind"] == "index"


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(ArtifactError, match="is a file"), RunFolder(tmp_path / "run").claim(CONFIG):
        pass


def test_overwrite_does_not_follow_links_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "kept.txt").write_text("x")
    run = RunFolder(tmp_path / "run")
    with run.claim(CONFIG):
        (run.path / "link").symlink_to(tmp_path / "data")
    with run.claim(CONFIG, overwrite=True):
        pass
    assert (tmp_path / "data" / "kept.txt").exists()
    assert not (run.path / "link").exists()


def test_a_setting_that_a_later_version_brought_does_not_stop_a_resume(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.claim({"grpo": {"steps": 40}, "lora": None}):
        pass
    later = {"grpo": {"steps": 40, "cap": 2.0}, "lora": None, "cluster": {"workers": 1}}
    with run.claim(later, resume=True):
        pass
    with pytest.raises(ArtifactError, match="lora"), run.claim(later | {"lora": {"r": 8}}, resume=True):
        pass


def test_a_run_killed_before_its_config_was_written_can_be_resumed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.claim(CONFIG):
        pass
    (run.path / "config.yaml").unlink()
    (run.path / ".config.yaml.77").write_text("half")
    with run.claim(CONFIG, resume=True):
        assert run.read_config() == CONFIG


def test_one_process_at_a_time_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ArtifactError, match=f"in use by process {holder.pid}"), run.claim({"seed": 1}, resume=True):
            pass
        holder.kill()
    with run.claim({"seed": 1}, resume=True):
        assert run.read_config() == {"seed": 1}


def test_an_artefact_that_the_config_names_is_no_strangers(tmp_path: Path) -> None:
    run, config = RunFolder(tmp_path / "run"), {"parts": [{"index": str(tmp_path / "run" / "a" / "bm25")}, "a\0b"]}
    write_manifest(run.path / "a", "bm25", {})
    with pytest.raises(ArtifactError, match="not empty and is not a Sleuth run"), run.claim(CONFIG):
        pass
    with run.claim(config):
        assert read_manifest(run.path / "a", "bm25", "")["kind"] == "bm25"
    other = RunFolder(tmp_path / "other")
    (other.path / "a").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="not empty"), other.claim({"index": str(other.path / "a")}):
        pass  # named, and yet a folder of somebody's own


def test_a_run_begins_in_a_folder_that_was_prepared(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.prepare(CONFIG):
        run.mark_done("world")
        (run.path / "rows.jsonl").write_text("x")
    with run.prepare(CONFIG):
        assert run.stage_done("world") and not run.begun
    with run.claim(CONFIG):
        assert run.begun
        assert run.stage_done("world")
    with run.prepare({"seed": 2}):  # a run is there: its config stays
        assert run.read_config() == CONFIG
    with pytest.raises(ArtifactError, match="already holds a run"), run.claim(CONFIG):
        pass


def test_stages_prepared_for_another_config_are_done_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.prepare({"seed": 1}):
        run.mark_done("world")
        (run.path / "rows.jsonl").write_text("x")
    with run.claim({"seed": 2}):
        assert not run.stage_done("world")
        assert (run.path / "rows.jsonl").exists()
