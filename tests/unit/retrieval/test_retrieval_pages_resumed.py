"""Corpora of pages whose making was stopped, and whose folder is in the way."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from test_retrieval_pages import GRID, picture
from test_retrieval_pages_judgements import beir

from retrieval.pages import sources as pages_sources
from retrieval.pages import write as pages_write
from retrieval.pages.config import PageSettings
from retrieval.pages.letters import LETTERS
from retrieval.pages.sources import Unit, identity_of
from retrieval.pages.write import write_pages
from sleuth.errors import ArtifactError


def test_a_stopped_run_goes_on_and_ends_as_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"_id": str(n), "text": f"page {n % 150}"} for n in range(200)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_pages(tmp_path / "c.jsonl", tmp_path / "whole", GRID)
    drawn: list[str] = []
    real: Callable[..., object] = Unit.__init__

    def stop(done: int) -> None:
        if done == 130:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pages(tmp_path / "c.jsonl", tmp_path / "out", GRID, on_progress=stop)
    assert not (tmp_path / "out").exists()

    def counted(self: Unit, where: str, pages: Callable[[], object], *more: str) -> None:
        def made() -> object:
            drawn.append(where)
            return pages()

        real(self, where, made, *more)

    monkeypatch.setattr(Unit, "__init__", counted)
    report = write_pages(tmp_path / "c.jsonl", tmp_path / "out", GRID)
    assert len(drawn) == 70 and (report.pages, report.duplicates) == (150, 50)
    for name in ("corpus.jsonl", LETTERS, "duplicates.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def folder_of_texts(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a.txt").write_text("hello")
    (folder / "b.txt").write_text("\n".join(f"line {n}" for n in range(20)))
    (folder / "c.txt").write_text("bye")
    return folder


def stop_after(pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt before so many pages of a run are written."""
    real = pages_sources.Page

    def page(*given: object, **named: object) -> object:
        nonlocal pages
        pages -= 1
        if pages < 0:
            raise KeyboardInterrupt
        return real(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(pages_sources, "Page", page)


@pytest.mark.parametrize("pages", [0, 2, 3, 5])
def test_a_run_that_was_stopped_within_a_document_ends_as_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    source = folder_of_texts(tmp_path / "in")
    whole = write_pages(source, tmp_path / "whole", GRID)
    assert whole.pages == 6
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_after(pages, patched)
        write_pages(source, tmp_path / "out", GRID)
    assert write_pages(source, tmp_path / "out", GRID) == whole
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )
    for name in ("corpus.jsonl", LETTERS):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def stopped(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was stopped with one document done."""
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_after(2, patched)
        write_pages(source, out, GRID)
    return out.with_name(f".{out.name}.part")


def test_a_file_that_is_no_document_does_not_undo_a_stopped_run_and_a_document_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = folder_of_texts(tmp_path / "in")
    stopped(source, tmp_path / "out", monkeypatch)
    (source / ".DS_Store").write_text("x")
    asked: list[int] = []
    write_pages(source, tmp_path / "out", GRID, on_progress=asked.append)
    assert asked == [5, 6] and not caplog.messages
    stopped(source, tmp_path / "other", monkeypatch)
    (source / "d.txt").write_text("new")
    assert write_pages(source, tmp_path / "other", GRID).pages == 7
    assert "begun afresh: its documents or settings were others" in caplog.text


def test_pictures_of_a_corpus_file_undo_a_stopped_run_when_they_change(tmp_path: Path) -> None:
    for name in ("p.png", "q.png"):
        (tmp_path / name).write_bytes(picture())
    (tmp_path / "c.jsonl").write_text('{"_id": "1", "text": "x", "image": "p.png"}\n')
    before = identity_of(tmp_path / "c.jsonl", PageSettings())
    (tmp_path / "q.png").write_bytes(picture(size=(90, 9)))
    assert identity_of(tmp_path / "c.jsonl", PageSettings()) == before
    (tmp_path / "p.png").write_bytes(picture(size=(90, 9)))
    assert identity_of(tmp_path / "c.jsonl", PageSettings()) != before


def test_a_stopped_run_whose_files_are_cut_off_is_begun_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = folder_of_texts(tmp_path / "in")
    part = stopped(source, tmp_path / "out", monkeypatch)
    (part / "corpus.jsonl").write_bytes((part / "corpus.jsonl").read_bytes()[:10])
    assert write_pages(source, tmp_path / "out", GRID).pages == 6
    assert "begun afresh: its files are cut off" in caplog.text
    part = stopped(source, tmp_path / "other", monkeypatch)
    (part / "state.json").write_text("{")
    assert write_pages(source, tmp_path / "other", GRID).pages == 6


def test_a_folder_of_somebody_else_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part/mine").write_text("precious")
    with pytest.raises(ArtifactError, match="holds what sleuth pages did not write"):
        write_pages(folder_of_texts(tmp_path / "in"), tmp_path / "out", GRID)
    assert (tmp_path / ".out.part/mine").read_text() == "precious"


def test_pages_are_not_written_among_the_documents_that_are_read(tmp_path: Path) -> None:
    source = folder_of_texts(tmp_path / "in")
    with pytest.raises(ArtifactError, match=r"lies in .*, whose pictures are read"):
        write_pages(source, source / "pages", GRID)
    assert sorted(path.name for path in source.iterdir()) == ["a.txt", "b.txt", "c.txt"]
    corpus = beir(tmp_path / "beir", {"a": "one"}, {"a": 1})
    assert write_pages(corpus, corpus / "pages", GRID).pages == 1


def test_a_picture_that_a_killed_run_left_behind_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a loss of power a file may have its size and nothing in it."""
    source = folder_of_texts(tmp_path / "in")
    whole = write_pages(source, tmp_path / "whole", GRID)
    part = stopped(source, tmp_path / "out", monkeypatch)
    kept = {json.loads(line)["image"] for line in (part / "corpus.jsonl").read_text().splitlines()}
    for row in map(json.loads, (tmp_path / "whole/corpus.jsonl").read_text().splitlines()):
        if row["image"] not in kept:
            (part / row["image"]).parent.mkdir(parents=True, exist_ok=True)
            (part / row["image"]).write_bytes(bytes((tmp_path / "whole" / row["image"]).stat().st_size))
    assert write_pages(source, tmp_path / "out", GRID) == whole
    for file in (tmp_path / "whole/images").rglob("*.png"):
        assert (tmp_path / "out" / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes()


def test_pictures_are_durable_before_the_state_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    durable: set[int] = set()
    seen: list[int] = []
    sync, keep = os.fsync, pages_write.atomic_write

    def synced(number: int) -> None:
        durable.add(os.fstat(number).st_ino)
        sync(number)

    def kept(path: Path, text: str) -> None:
        if path.name == "state.json":
            pictures = [file.stat().st_ino for file in (path.parent / "images").rglob("*.png")]
            assert set(pictures) <= durable
            seen.append(len(pictures))
        keep(path, text)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(pages_write, "atomic_write", kept)
    rows = [{"_id": str(n), "text": f"page {n}"} for n in range(70)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_pages(tmp_path / "c.jsonl", tmp_path / "out", GRID)
    assert seen == [0, 64, 70]


def test_what_lies_beside_one_html_file_is_not_looked_at_and_what_vanishes_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = PageSettings(renderer="chromium")
    (tmp_path / "a.html").write_text("hello")
    before = identity_of(tmp_path / "a.html", printed), identity_of(tmp_path, printed)
    (tmp_path / "gone.log").write_text("x")
    assert identity_of(tmp_path / "a.html", printed) == before[0]
    real = Path.stat

    def stat(self: Path, **how: bool) -> os.stat_result:
        if self.name == "gone.log":
            self.unlink(missing_ok=True)
        return real(self, **how)

    monkeypatch.setattr(Path, "stat", stat)
    assert identity_of(tmp_path, printed) == before[1]
    monkeypatch.undo()
    (tmp_path / "a.html").write_text("hello there")
    assert identity_of(tmp_path / "a.html", printed) != before[0]


def test_styles_beside_html_undo_a_stopped_run_of_a_browser_only(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<link rel=stylesheet href=a.css>hello")
    drawn, printed = (PageSettings(), PageSettings(renderer="chromium"))
    before = [identity_of(tmp_path, settings) for settings in (drawn, printed)]
    (tmp_path / "a.css").write_text("body { color: red }")
    after = [identity_of(tmp_path, settings) for settings in (drawn, printed)]
    assert before[0] == after[0] and before[1] != after[1]
