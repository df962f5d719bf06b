"""Corpora of pages: what is read and drawn, what is refused, and that a stopped run goes on."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import features

from cli.main import main
from hub.pictures import read_image
from retrieval.corpus import BadRow, read_rows
from retrieval.pages.config import PageSettings
from retrieval.pages.draw import Drawer
from retrieval.pages.html import text_of_html
from retrieval.pages.letters import LETTERS, LetterPlaces
from retrieval.pages.sources import units_of
from retrieval.pages.write import PagesReport, write_pages
from sleuth.errors import ConfigError, DataError

GRID = PageSettings(width=160, height=96, size=13, cell=(8, 16), margin=0)


def picture(kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (12, 9), **how: object) -> bytes:
    file = io.BytesIO()
    Pillow.new(mode, size).save(file, kind, **how)
    return file.getvalue()


def nothing_wide() -> bytes:
    """A PNG of 0 x 0 pixels."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def pdf(*pages: str, password: bool = False, box: str = "/MediaBox [0 0 144 72]", at: str = "20 50") -> bytes:
    """A PDF of one line a page, written by hand; with a password it is one that nobody can open."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    font = "<< /Font << /F << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
    for text in pages:
        stream = f"BT /F 12 Tf {at} Td ({text}) Tj ET"
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        objects.append(f"<< /Type /Page /Parent 2 0 R {box} /Contents {len(objects)} 0 R /Resources {font} >>")
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    if password:
        nothing = "00" * 32
        objects.append(f"<< /Filter /Standard /V 1 /R 2 /O <{nothing}> /U <{nothing}> /P -4 >>")
    body, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    start = len(body)
    body += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n" + "".join(
        f"{place:010d} 00000 n \n" for place in places
    )
    more = f" /Encrypt {len(objects)} 0 R /ID [<{'00' * 16}> <{'00' * 16}>]" if password else ""
    body += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R{more} >>\nstartxref\n{start}\n%%EOF\n"
    return body.encode("latin-1")


def rows_of(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / "corpus.jsonl").read_text().splitlines()]


def test_letters_stand_where_their_places_say() -> None:
    (page,) = Drawer(GRID).pages("Oslo\nA town.", "p")
    first, second = page.lines
    assert (first.text, first.x, first.y) == ("Oslo", (4, 12, 20, 28), 8)
    assert (second.text, second.y) == ("A town.", 24)
    dark = page.pixels < 128
    for x in first.x:
        assert dark[0:16, x - 4 : x + 4].any()
    assert not dark[:, 64:].any() and not dark[32:].any()


@pytest.mark.parametrize("letter", "Tigjlé")
def test_a_letter_in_a_cell_is_whole(letter: str) -> None:
    drawer = Drawer(GRID)
    (page,) = drawer.pages(letter, "p")
    _, top, _, bottom = drawer.font.getbbox(letter)
    rows = np.flatnonzero((page.pixels[:16, :8] < 250).any(axis=1))
    assert rows[-1] - rows[0] + 1 == bottom - top


@given(st.text(max_size=300))
def test_a_text_loses_no_letter_when_it_is_broken_into_lines(text: str) -> None:
    pages = list(Drawer(GRID).pages(text, "p"))
    shown = "".join(page.text for page in pages)
    assert "".join(shown.split()) == "".join(text.split())
    assert all(len(line.text) == len(line.x) <= 20 for page in pages for line in page.lines)


@pytest.mark.parametrize(
    "text",
    ["\u0633\u0644\u0627\u0645 abc", "\u05e9\u05dc\u05d5\u05dd", "\u0928\u092e\u0938\u094d\u0924\u0947", "cafe\u0301"],
)
def test_letters_that_join_or_run_from_right_to_left_have_no_places_and_cells_say_so(tmp_path: Path, text: str) -> None:
    rows = [{"_id": "1", "text": f"first {text}"}, {"_id": "2", "text": "caf\u00e9"}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, settings in (("cells", GRID), ("free", PageSettings(width=200, height=60))):
        write_pages(tmp_path / "c.jsonl", tmp_path / name, settings)
        (row,) = map(json.loads, (tmp_path / name / LETTERS).read_text().splitlines())
        assert row["image"] == rows_of(tmp_path / name)[1]["image"]
    assert "1 of its lines join letters or run from right to left" in (tmp_path / "cells/notes.jsonl").read_text()
    free = tmp_path / "free/notes.jsonl"
    assert ("one by one" in free.read_text() if free.exists() else False) != features.check("raqm")


def test_jitter_moves_a_page_the_same_way_each_time() -> None:
    settings = PageSettings(width=200, height=100, margin=4, jitter=9)
    drawn = [next(Drawer(settings).pages("Oslo", name)).pixels for name in ("a", "a", "b", "c")]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2]) or not np.array_equal(drawn[0], drawn[3])
    middle = next(Drawer(settings).pages("Oslo", "a")).lines[0]
    ink = np.argwhere(drawn[0] < 128)
    assert abs(ink[:, 0].mean() - middle.y) < 6 and abs(ink[:, 1].mean() - np.mean(middle.x)) < 6


def test_settings_that_leave_no_room_are_refused() -> None:
    with pytest.raises(ValueError, match="no letter fits"):
        PageSettings(width=40, height=40, margin=20)
    with pytest.raises(ValueError, match="letters of 200 pixels do not fit cells of 8 x 16"):
        PageSettings(width=512, height=720, size=200, cell=(8, 16))
    with pytest.raises(ConfigError, match="no font 'Nosuch'"):
        Drawer(PageSettings(font="Nosuch"))


def test_documents_of_all_kinds_become_pages(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.pdf").write_bytes(pdf("Oslo is here", "Bergen"))
    (folder / "b.png").write_bytes(picture())
    (folder / "sub/c.html").write_text("<title>T</title><script>no</script><p>One<p>Two")
    (folder / "d.txt").write_text("Ärger")
    report = write_pages(folder, tmp_path / "out", PageSettings(width=160, height=96))
    assert (report.pages, report.damaged, report.notes) == (5, 0, 0)
    found = {row["_id"]: (row["title"], row["text"]) for row in rows_of(tmp_path / "out")}
    assert found == {
        "a.pdf#1": ("a", "Oslo is here"),
        "a.pdf#2": ("a", "Bergen"),
        "b.png": ("b", ""),
        "d.txt": ("d", "Ärger"),
        "sub/c.html": ("T", "One\nTwo"),
    }
    read = [row for row in read_rows(tmp_path / "out") if not isinstance(row, BadRow)]
    assert [row.passage.image is not None for row in read] == [True] * 5


@pytest.mark.parametrize(
    ("box", "at"),
    [
        ("/MediaBox [0 0 144 72]", "20 50"),
        ("/MediaBox [100 200 244 272]", "120 250"),
        ("/MediaBox [0 0 400 400] /CropBox [100 200 244 272]", "120 250"),
    ],
)
def test_letters_of_a_pdf_are_where_its_ink_is(tmp_path: Path, box: str, at: str) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf("Oslo", box=box, at=at))
    write_pages(tmp_path / "a.pdf", tmp_path / "out", PageSettings(dpi=144))
    (row,) = (r for r in read_rows(tmp_path / "out") if not isinstance(r, BadRow))
    image = row.passage.image
    assert image is not None
    written = LetterPlaces(tmp_path / "out" / LETTERS).of(image.sha256)
    assert written.size == (288, 144) and [line.text for line in written.lines] == ["Oslo"]
    dark = np.asarray(Pillow.open(io.BytesIO(read_image(image))).convert("L")) < 128
    for x in written.lines[0].x:
        assert dark[written.lines[0].y - 12 : written.lines[0].y + 12, x - 4 : x + 5].any()


def test_letters_of_a_pdf_that_are_not_known_are_not_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/turned.pdf").write_bytes(pdf("Oslo", box="/MediaBox [0 0 144 72] /Rotate 90"))
    (tmp_path / "in/scanned.pdf").write_bytes(pdf(""))
    assert write_pages(tmp_path / "in", tmp_path / "out").pages == 2
    assert not (tmp_path / "out" / LETTERS).exists()


def test_letters_that_the_font_lacks_are_named_and_no_letters_of_a_page(tmp_path: Path) -> None:
    rows = [{"_id": "1", "text": "Oslo 東京"}, {"_id": "2", "text": "plain"}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert write_pages(tmp_path / "c.jsonl", tmp_path / "out", GRID).notes == 1
    note = json.loads((tmp_path / "out/notes.jsonl").read_text())
    assert note["where"].endswith("c.jsonl:1")
    assert "lacks 2 of its letters (東 京); choose another --font" in note["note"]
    first, second = map(json.loads, (tmp_path / "out" / LETTERS).read_text().splitlines())
    assert (first["lines"][0]["text"], second["lines"][0]["text"]) == ("Oslo \ufffd\ufffd", "plain")
    assert rows_of(tmp_path / "out")[0]["text"] == "Oslo 東京"


def test_a_text_of_which_the_font_has_no_letter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("東京、大阪")
    with pytest.raises(DataError, match="has no letter that the font DejaVu Sans Mono has"):
        write_pages(tmp_path / "a.txt", tmp_path / "out", GRID)


def test_pictures_of_a_corpus_are_kept_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/p.jpg").write_bytes(picture("JPEG"))
    (tmp_path / "in/corpus.jsonl").write_text('{"_id": "1", "title": "T", "text": "x", "image": "p.jpg"}\n')
    write_pages(tmp_path / "in", tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert row["image"].endswith(".jpg") and (tmp_path / "out" / row["image"]).read_bytes() == picture("JPEG")


def test_equal_pages_are_kept_once_and_named(tmp_path: Path) -> None:
    rows = [{"_id": "1", "text": "same"}, {"_id": "2", "text": "same"}, {"_id": "3", "text": "other"}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = write_pages(tmp_path / "c.jsonl", tmp_path / "out", GRID)
    assert (report.pages, report.duplicates) == (2, 1)
    assert json.loads((tmp_path / "out/duplicates.jsonl").read_text()) == {"id": "2", "same_as": "1"}


def test_equal_documents_are_kept_once_whatever_their_files_are_called(tmp_path: Path) -> None:
    for name, content in (
        ("a.png", picture()),
        ("sub/b.png", picture()),
        ("c.pdf", pdf("Oslo")),
        ("d.pdf", pdf("Oslo")),
    ):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    report = write_pages(tmp_path / "in", tmp_path / "out")
    assert (report.pages, report.duplicates) == (2, 2)
    rows = [{"_id": name, "title": name, "image": "a.png"} for name in ("Oslo", "Bergen")]
    (tmp_path / "in/corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert write_pages(tmp_path / "in", tmp_path / "titled").pages == 2, "titles of passages tell them apart"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("torn.png", picture(size=(90, 90))[:60], "torn.png cannot be read"),
        ("zero.png", nothing_wide(), "zero.png cannot be read: it is no picture"),
        ("empty.png", b"", "empty.png cannot be read: it is no picture"),
        ("text.png", b"hello", "it is no picture"),
        ("bomb.png", picture(mode="1", size=(20_000, 10_000)), "too much memory"),
        ("large.png", picture(mode="1", size=(9_000, 9_000)), "9,000 x 9,000 pixels"),
        ("torn.pdf", b"%PDF-1.4 nothing", "is no PDF that can be read"),
        ("locked.pdf", pdf("Oslo", password=True), "needs a password"),
        ("latin.txt", "Ärger".encode("latin-1"), "is not UTF-8 text"),
        ("blank.txt", b" \n", "has no text to draw"),
        ("blank.html", b"<head><title>Nothing</title></head>", "has no text to draw"),
    ],
)
def test_a_damaged_document_is_named_in_one_line_and_can_be_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, content: bytes, said: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.png").write_bytes(picture())
    (folder / name).write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        main(["pages", str(folder), "--out", str(tmp_path / "out")])
    error = " ".join(capfd.readouterr().err.split())
    assert stop.value.code == 2 and said in error and name in error and "--skip-damaged" in error
    report = write_pages(folder, tmp_path / "out", skip_damaged=True)
    assert (report.pages, report.damaged) == (1, 1) and name in report.examples[0]


def test_animated_pictures_are_refused_and_odd_ones_converted(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    frames = [Pillow.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    (folder / "print.jpg").write_bytes(picture("JPEG", "CMYK"))
    (folder / "wrong.jpg").write_bytes(picture("PNG", size=(20, 5)))
    report = write_pages(folder, tmp_path / "out", skip_damaged=True)
    assert report == PagesReport(
        3, 2, 0, 1, 2, [f"{folder / 'moving.gif'}: moving.gif has 2 frames, and a page is one"]
    )
    assert [row["image"][-4:] for row in rows_of(tmp_path / "out")] == [".png", ".png"]
    notes = (tmp_path / "out/notes.jsonl").read_text()
    assert "CMYK JPEG became an RGB PNG" in notes and "its ending says JPEG, and it is PNG" in notes


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    (tmp_path / "report.pdf").write_bytes(pdf("x"))
    with pytest.raises(DataError, match=r"no document at .*reprot.pdf.*report.pdf"):
        next(units_of(tmp_path / "reprot.pdf", GRID))
    with pytest.raises(DataError, match="no document at"):
        write_pages(tmp_path / "reprot.pdf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["report.pdf"], "nothing is begun"


def test_a_link_to_nothing_is_a_damaged_document(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/good.png").write_bytes(picture())
    for name in ("gone.png", "gone.txt"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"gone\.png is a link to nothing"):
        write_pages(tmp_path / "in", tmp_path / "out")
    report = write_pages(tmp_path / "in", tmp_path / "out", skip_damaged=True)
    assert (report.pages, report.damaged) == (1, 2)


@pytest.mark.parametrize("name", ["kept.png", "kept.txt", "kept.html", "kept.pdf"])
def test_a_document_that_the_system_does_not_let_be_read_is_damaged(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/good.png").write_bytes(picture())
    (tmp_path / "in" / name).symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        write_pages(tmp_path / "in", tmp_path / "out")
    report = write_pages(tmp_path / "in", tmp_path / "out", skip_damaged=True)
    assert (report.pages, report.damaged) == (1, 1) and name in report.examples[0]


def test_what_is_said_of_a_source_and_of_what_was_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(picture())
    with pytest.raises(SystemExit):
        main(["pages", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert "1 page in" in (said := capfd.readouterr().err) and "; 1 duplicate left out" in said
    for source, wrong in (("", "SOURCE is empty"), (str(tmp_path / "in/zzzz.pdf"), "no document at")):
        with pytest.raises(SystemExit):
            main(["pages", source, "--out", str(tmp_path / "other")])
        assert wrong in (said := " ".join(capfd.readouterr().err.split())) and "a.png" not in said


def test_html_is_read_as_a_browser_shows_it() -> None:
    title, text = text_of_html(
        "<head><title>A &lt; B</title><style>x</style></head><h1>One</h1>two<br>three <i>four</i>"
    )
    assert (title, text) == ("A < B", "One\ntwo\nthree four")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("<head><title>T</title><meta><p>One", ("T", "One")),
        ("<head><meta charset=utf-8>\nbare <b>text", ("", "bare text")),
        ("<title>T</title><body><svg><title>Icon</title></svg><p>One", ("T", "One")),
        ("<select><option>A<option>B</select><button>Go</button><button>Stop</button>", ("", "A B Go Stop")),
        ("one<div hidden><div>x</div>no</div> <div><span hidden>no</div>two", ("", "one\ntwo")),
        ("<p style='color: red; DISPLAY : none !important'>no<p>one<br hidden>two", ("", "one\ntwo")),
        ("<ul><li hidden>no<li>one</ul><table><tr style=display:none><td>no<td>no<tr><td>two", ("", "one\ntwo")),
        ("<p style='display: nonesuch'>one<img hidden>two", ("", "onetwo")),
        ("<p>press <button>Go</button>, then", ("", "press Go , then")),
    ],
)
def test_html_that_leaves_tags_out_or_has_boxes_keeps_its_words(content: str, found: tuple[str, str]) -> None:
    assert text_of_html(content) == found
