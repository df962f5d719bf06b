"""HTML printed by a browser: what it shows becomes pages, scripts do not run, and without a browser it is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image as Pillow

from retrieval.pages.config import PageSettings
from retrieval.pages.write import write_pages
from sleuth.errors import ConfigError

SETTINGS = PageSettings(renderer="chromium", dpi=48)
CONTENT = """<!doctype html><meta charset="utf-8"><title>Wæres</title>
<style>td { border: 1px solid; background: #f00; width: 5cm }</style>
<table><tr><td>Arden</td><td>42 bowls</td></tr></table>
<script>document.body.textContent = "owned"</script>
<div style="break-before: page">second page</div>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium on the path")
def test_html_becomes_the_pages_that_a_browser_prints(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "wares.html").write_text(CONTENT, encoding="utf-8")
    write_pages(tmp_path / "in", tmp_path / "out", SETTINGS)
    rows = [json.loads(line) for line in (tmp_path / "out" / "corpus.jsonl").open()]
    assert [(row["_id"], row["title"]) for row in rows] == [("wares.html::w0", "Wæres"), ("wares.html::w1", "Wæres")]
    assert "42 bowls" in rows[0]["text"] and rows[1]["text"] == "second page"
    with Pillow.open(tmp_path / "out" / rows[0]["image"]) as page:
        assert abs(page.width / page.height - 8.5 / 11) < 0.1
        red = sum(count for count, (r, g, b) in page.convert("RGB").getcolors(1 << 20) or [] if r > 200 > 60 > g + b)
        assert red > 300


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium on the path")
@pytest.mark.parametrize(
    "within",
    [
        '<iframe src="secret.txt"></iframe>',
        '<object data="secret.txt" type="text/plain"></object>',
        '<embed src="secret.txt" type="text/plain">',
    ],
)
def test_a_page_shows_no_other_file_s_text(tmp_path: Path, within: str) -> None:
    (tmp_path / "secret.txt").write_text("passwords", encoding="utf-8")
    (tmp_path / "page.html").write_text(f"<!doctype html><p>hello</p>{within}", encoding="utf-8")
    write_pages(tmp_path / "page.html", tmp_path / "out", SETTINGS)
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "corpus.jsonl").open()]
    assert row["text"] == "hello"


def test_without_a_browser_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wares.html").write_text(CONTENT, encoding="utf-8")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"needs Chromium or Chrome on the path \(install it, or use pillow\)"):
        write_pages(tmp_path / "wares.html", tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()
