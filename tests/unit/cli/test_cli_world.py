"""``sleuth world`` writes a folder, says what is in it, and refuses nonsense in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.world import world
from sleuth.errors import ArtifactError, ConfigError

SMALL = ["--set", "films=60", "--set", "people=60", "--set", "companies=40", "--set", "cities=40"]
SMALL += ["--set", "countries=20", "--set", "train=40", "--set", "dev=10", "--set", "test=10"]


def _run(*arguments: str) -> object:
    app = typer.Typer()
    app.command()(world)
    return CliRunner().invoke(app, list(arguments), catch_exceptions=True)


def test_a_world_appears_with_two_examples(tmp_path: Path) -> None:
    result = _run("--out", str(tmp_path / "w"), "--seed", "3", "--paraphrase", "0.5", *SMALL)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "220 passages; questions: 40 train, 10 dev, 10 test" in result.stderr
    assert len(result.stderr.splitlines()) == 3
    assert (tmp_path / "w" / "manifest.json").exists()


def test_a_config_file_is_read_and_options_go_over_it(tmp_path: Path) -> None:
    config = tmp_path / "world.yaml"
    config.write_text("films: 60\npeople: 60\ncompanies: 40\ncities: 40\ncountries: 20\ntrain: 5\ndev: 5\ntest: 5\n")
    result = _run(str(config), "--out", str(tmp_path / "w"), "--set", "train=7")
    assert "7 train, 5 dev, 5 test" in result.stderr


def test_a_runs_config_names_its_world(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("out: runs/x\npolicy: {tiny: {}}\nworld: {train: 6, dev: 5, test: 5}\n")
    result = _run(str(config), "--out", str(tmp_path / "w"), *SMALL[:-6])
    assert "6 train, 5 dev, 5 test" in result.stderr
    config.write_text("out: runs/x\npolicy: {model: smollm2}\n")
    assert "has no world" in str(_run(str(config), "--out", str(tmp_path / "v")).exception)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--paraphrase", "2"], ConfigError, "paraphrase"),
        (["--set", "film=3"], ConfigError, "did you mean 'films'"),
        (["--set", "films=-1"], ConfigError, "films"),
        (["--set", "first_year=2000"], ConfigError, "last_year must be after first_year"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, arguments: list[str], error: type[Exception], words: str) -> None:
    result = _run("--out", str(tmp_path / "w"), *arguments)
    assert isinstance(result.exception, error)
    assert words in str(result.exception)
    assert not (tmp_path / "w").exists()


def test_an_existing_folder_is_kept_unless_told(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    assert isinstance(_run("--out", str(tmp_path / "w"), *SMALL).exception, ArtifactError)
    assert _run("--out", str(tmp_path / "w"), "--overwrite", *SMALL).exit_code == 0


def test_a_folder_that_is_no_world_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "mine.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    for out in ("w", "."):
        assert isinstance(_run("--out", out, "--overwrite", *SMALL).exception, ArtifactError)
    assert (tmp_path / "w" / "mine.txt").read_text() == "mine"
