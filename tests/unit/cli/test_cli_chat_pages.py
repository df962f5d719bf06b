"""Pages in a session: marked where they are found, drawn in a terminal, saved to a file."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image as Pillow
from rich.cells import cell_len
from test_cli_chat_view import ANSI, console, decode, written

from cli.chat.commands import Chat, run_command
from cli.chat.pages import drawn
from cli.chat.view import View, folded
from sleuth.errors import ConfigError, DataError
from sleuth.types import Hit, Image, Passage


def picture(*colours: tuple[int, int, int], side: int = 20) -> Image:
    """A column of squares."""
    made = Pillow.new("RGB", (side, side * len(colours)))
    for place, colour in enumerate(colours):
        made.paste(colour, (0, side * place, side, side * (place + 1)))
    file = io.BytesIO()
    made.save(file, "PNG")
    return Image("pages/a\x1b.png", "0" * 64, file.getvalue())


RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)
PAGE = Hit(Passage("p", "Oslo", "the town", picture(RED, GREEN, BLUE)), 1.5, 1)


def test_a_page_is_drawn_two_pixels_a_letter() -> None:
    target = console(40, colour=True)
    target.print(drawn(picture(RED, GREEN, BLUE, side=1), 1, 2))
    assert written(target).splitlines() == [
        "\x1b[38;2;200;0;0;48;2;0;200;0m▀\x1b[0m",
        "\x1b[38;2;0;0;200m▀\x1b[0m",
    ]
    wide = drawn(picture(RED, GREEN), 8, 100).plain.splitlines()
    assert [len(line) for line in wide] == [8] * 8  # 8 pixels by 16


def test_a_passage_shows_its_page_where_there_are_colours_and_names_it_elsewhere() -> None:
    coloured, bare = console(60, colour=True), console(60)
    for target in (coloured, bare):
        View(target, decode).passage(1, PAGE)
        assert "page pages/a\\x1b.png, 20 x 60 pixels" in ANSI.sub("", written(target))
    assert "▀" in written(coloured) and "▀" not in written(bare)
    assert max(cell_len(line) for line in ANSI.sub("", written(coloured)).splitlines()) < 60
    far = replace(PAGE, passage=replace(PAGE.passage, image=Image("a.png", "0" * 64)))
    View(bare, decode).passage(1, far)
    assert "page a.png, whose picture the retriever does not send" in written(bare)


def test_a_page_among_the_hits_is_marked() -> None:
    line = folded(1, PAGE, 50).plain
    assert "▤ Oslo  the town" in line and cell_len(line) <= 50
    assert "▤" not in folded(1, replace(PAGE, passage=Passage("p", "Oslo", "the town")), 50).plain


def test_a_page_is_saved_once_and_only_if_there_is_one(tmp_path: Path) -> None:
    target = console()
    hits = {1: PAGE, 2: Hit(Passage("q", "Voss", "x"), 1.0, 2)}
    chat = Chat(SimpleNamespace(passage=hits.get), View(target, decode), None)  # type: ignore[arg-type]
    file = tmp_path / "a page.png"
    run_command(chat, f"/passage 1 '{file}'")
    assert PAGE.passage.image and file.read_bytes() == PAGE.passage.image.content
    assert "page 1 written to" in written(target)
    for words, error, what in (
        (f"1 '{file}'", ConfigError, "exists"),
        (f"1 {tmp_path}/none/a.png", DataError, "cannot write"),
        (f"2 {tmp_path}/b.png", ConfigError, "has no picture"),
        ("1 a b", ConfigError, "which passage"),
        ("one", ConfigError, "which passage"),
    ):
        with pytest.raises(error, match=what):
            run_command(chat, f"/passage {words}")
    assert not (tmp_path / "b.png").exists()
