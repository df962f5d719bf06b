"""Heat maps of a search: written and named by what explains the hits, where --maps says."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image as Pillow
from typer.testing import CliRunner

from cli.main import make_app
from sleuth.explanations import Contribution, Explanation
from sleuth.types import Hit, Image, Passage


def page() -> Image:
    file = io.BytesIO()
    Pillow.new("RGB", (32, 16), "white").save(file, "PNG")
    return Image("a.png", "0" * 64, file.getvalue())


class Shelf:
    """A page and a text, in this order; the page was met at one place."""

    fingerprint = "shelf"

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        hits = [Hit(Passage("page", "A page", "", page()), 2.0, 1), Hit(Passage("text", "", "words"), 1.0, 2)]
        return [hits[:k] for _ in queries]

    def explain(self, query: str, hits: Sequence[Hit]) -> list[Explanation]:
        box = lambda hit: (8, 0, 16, 16) if hit.passage.image else None
        return [Explanation((Contribution(query, "met", hit.score, box(hit)),)) for hit in hits]


@pytest.fixture(autouse=True)
def shelf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.retrievers.retriever_settings", lambda *_: SimpleNamespace())
    monkeypatch.setattr("workflows.retrievers.open_alone", lambda *_, **__: Shelf())


def said(*words: str) -> str:
    done = CliRunner().invoke(make_app(), ["search", "index", "oslo", *words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_an_explained_page_names_its_heat_map(tmp_path: Path) -> None:
    shown = said("--explain", "--maps", str(tmp_path / "maps"))
    assert shown.count("heat map:") == 1 and str(tmp_path / "maps/1-1.png") in shown
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["1-1.html", "1-1.png"]
    (row,) = map(json.loads, said("--json", "--maps", str(tmp_path / "maps")).splitlines())
    assert [hit.get("heat_map") for hit in row["hits"]] == [str(tmp_path / "maps/1-1.png"), None]


def test_an_explained_page_is_drawn_where_no_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said()
    assert not (tmp_path / "runs").exists()
    assert "heat map: runs/maps/1-1.png" in said("--explain") and (tmp_path / "runs/maps/1-1.html").exists()


def test_an_explained_text_draws_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Shelf, "search", lambda *_: [[Hit(Passage("text", "", "words"), 1.0, 1)]])
    said("--explain")
    assert not (tmp_path / "runs").exists()


def test_hits_are_shown_where_the_usual_folder_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file")
    done = CliRunner().invoke(make_app(), ["search", "index", "oslo", "bergen", "--explain"], catch_exceptions=False)
    assert done.exit_code == 0 and done.stdout.count("A page") == 2 and "heat map:" not in done.stdout
    assert done.stderr.count("warning: no heat maps, as runs/maps cannot be written") == 1
    named = CliRunner().invoke(make_app(), ["search", "index", "oslo", "--maps", "runs/maps"])
    assert named.exit_code == 2 and "runs" in named.stderr and len(named.stderr.splitlines()) <= 2


def test_maps_of_an_earlier_search_are_removed_and_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    maps = tmp_path / "runs/maps"
    with monkeypatch.context() as earlier:
        earlier.setattr(Shelf, "search", lambda *_: [[Hit(Passage("page", "", "", page()), 1.0, 2)]])
        said("--explain")
    assert {path.name for path in maps.iterdir()} == {"1-2.png", "1-2.html"}
    kept = {"1-7.png", "1-8.html", "1-photo.png", "11-2.png", "2-1.png"}
    for name in kept:
        (maps / name).write_text("somebody's own")
    said("--explain")
    assert {path.name for path in maps.iterdir()} == {"1-1.png", "1-1.html", *kept}
    monkeypatch.setattr(Shelf, "search", lambda *_: [[Hit(Passage("text", "", "words"), 1.0, 1)]])
    said("--explain")
    assert {path.name for path in maps.iterdir()} == kept
