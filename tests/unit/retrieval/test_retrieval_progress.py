"""What long work says where standard error is no terminal."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

import cli.console
import retrieval.progress
from retrieval.config import RetrieverSettings
from retrieval.open import open_retriever
from sleuth.progress import plain_progress


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line at the end comes however short the work is."""
    for module in (retrieval.progress, cli.console):
        monkeypatch.setattr(module, "plain_progress", partial(plain_progress, first_s=0))


@pytest.mark.usefixtures("talkative")
def test_an_index_that_is_made_says_how_many_passages_are_encoded_of_how_many(
    corpus: Path, encoder_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    values = {"kind": "dense", "index": tmp_path / "index", "encoder": str(encoder_folder), "corpus": str(corpus)}
    open_retriever(RetrieverSettings.model_validate(values), progress=retrieval.progress.build_progress)
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.rpartition(" in ")[0] == f"encoding {corpus}: 11 of 11, done"


@pytest.mark.usefixtures("talkative")
def test_a_command_that_counts_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    with cli.console.counting("mining [negatives]") as on_progress:
        on_progress(1_500, 3_000)
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.rpartition(" in ")[0] == "mining [negatives]: 1,500 of 3,000, done"


def test_work_of_a_second_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with retrieval.progress.build_progress("indexing") as on_progress, cli.console.counting("queries") as counted:
        on_progress(3)
        counted(3, 3)
    assert capfd.readouterr().err == ""


def test_a_terminal_shows_the_total(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("rich.console.Console", partial(Console, force_terminal=True, width=100))
    with retrieval.progress.build_progress("encoding corpus") as on_progress:
        on_progress.expect(48_297)  # type: ignore[attr-defined]
        on_progress(12_288)
    shown = capsys.readouterr().err
    assert "encoding corpus" in shown
    assert "12,288 of 48,297 passages" in shown
