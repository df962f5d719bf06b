"""Curves show the numbers that they were given."""

import io
import struct
from pathlib import Path

import pytest
from rich.console import Console

from sleuth.curves import Curve, curves_of, draw_curves, terminal_curves

ROWS = [
    {"step": 0, "dev/em": 0.0, "loss": 2.0},
    {"step": 5, "loss": 1.0},
    {"step": 20, "dev/em": 0.4, "dev/f1": "nan"},
    {"step": 10, "dev/em": 0.9},
    {"step": 10, "dev/em": 0.5},
]


def chart(curves: list[Curve], width: int = 80, bounds: tuple[float, float] | None = (0.0, 1.0)) -> list[str]:
    stream = io.StringIO()
    terminal_curves(curves, Console(file=stream, width=width), title="EM", bounds=bounds)
    return stream.getvalue().splitlines()


def test_curves_are_read_from_rows_that_have_the_metric() -> None:
    curves = curves_of(ROWS, {"dev/em": "all", "dev/f1": "F1", "absent": "absent"})
    assert curves == [Curve("all", ((0.0, 0.0), (10.0, 0.5), (20.0, 0.4)))]


def test_markers_stand_where_the_values_are() -> None:
    lines = chart([Curve("a", ((0, 0.0), (10, 0.5), (20, 1.0)))])
    body = lines[1:14]
    assert [row for row, line in enumerate(body) if "●" in line] == [0, 6, 12]
    assert body[0].startswith("   1.00 ┤")
    assert body[0].index("●") == 79
    assert body[6].startswith("   0.50 ┤")
    assert body[6].index("●") == 44
    assert body[12].startswith("   0.00 ┤●")
    assert "a  0.000 → 1.000" in lines[-1]


@pytest.mark.parametrize("width", [30, 80, 200])
def test_no_line_is_wider_than_the_terminal_or_80_columns(width: int) -> None:
    curves = [Curve(f"c{i}", tuple((step, step / 40 * i / 9) for step in range(0, 41, 5))) for i in range(10)]
    assert max(len(line) for line in chart(curves, width)) <= min(width, 80)


def test_curves_differ_without_colour_and_the_first_is_on_top() -> None:
    text = "\n".join(chart([Curve("a", ((0, 0.5), (9, 0.5))), Curve("b", ((0, 0.5), (9, 0.1)))])[:14])
    assert text.count("●") == 2
    assert text.count("▲") == 1


@pytest.mark.parametrize("points", [((5.0, 0.3),), ((0.0, 7.0), (9.0, 7.0))])
def test_one_point_and_a_flat_line_are_drawn(points: tuple[tuple[float, float], ...]) -> None:
    lines = chart([Curve("a", points)], bounds=None)
    assert sum(line.count("●") for line in lines[1:14]) == len(points)


def test_png_is_written(tmp_path: Path) -> None:
    path = tmp_path / "figures" / "curve.png"
    draw_curves(curves_of(ROWS, {"dev/em": "all", "loss": "loss"}), path, title="t", bounds=(0, 1))
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert (width, height) == (1080, 630)


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    for curves in ([], [Curve("a", ())]):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw_curves(curves, tmp_path / "x.png")
        with pytest.raises(ValueError, match="nothing to draw"):
            chart(curves)
