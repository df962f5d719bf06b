"""A page with what a query met on it: a picture, and a page of HTML with the parts of the score beside it."""

from __future__ import annotations

import base64
import html
import io

from PIL import Image as Pillow
from PIL import ImageDraw

from hub.pictures import decode
from sleuth.explanations import Explanation
from sleuth.types import Image

_SMALLEST = 480
"""Pixels of the longer side; a smaller page is made larger, so that it can be looked at."""
_RED = (220, 30, 30)
_PARTS = 40


def heat_png(image: Image, explanation: Explanation) -> bytes:
    """The page as PNG; what more of the score came from is the redder. What scored below zero is left white."""
    page = decode(image)
    weights: dict[tuple[int, int, int, int], float] = {}
    for part in explanation.parts:
        if part.box is not None and part.score > 0:
            weights[part.box] = weights.get(part.box, 0.0) + part.score
    most = max(weights.values(), default=1.0)
    scale = max(1, -(-_SMALLEST // max(page.size)))
    large = page.resize((page.width * scale, page.height * scale), Pillow.Resampling.NEAREST)
    over = Pillow.new("RGBA", large.size)
    draw = ImageDraw.Draw(over)
    for (left, top, right, bottom), weight in weights.items():
        corners = (left * scale, top * scale, right * scale - 1, bottom * scale - 1)
        draw.rectangle(corners, fill=(*_RED, round(40 + 140 * weight / most)))
    file = io.BytesIO()
    Pillow.alpha_composite(large.convert("RGBA"), over).convert("RGB").save(file, "PNG")
    return file.getvalue()


GENERATOR = '<meta name="generator" content="sleuth heat map">'
"""In the head of each page that `heat_html` writes, before anything that a passage says."""


def heat_html(title: str, query: str, score: float, png: bytes, explanation: Explanation) -> str:
    """A page of its own, without scripts and without anything from elsewhere."""
    rows = "".join(
        f"<tr><td>{html.escape(part.query_term)}</td><td>{html.escape(part.passage_term)}</td>"
        f"<td>{part.score:.4f}</td></tr>"
        for part in explanation.parts[:_PARTS]
    )
    more = len(explanation.parts) - _PARTS
    rest = f"<p>{more} smaller parts are not shown.</p>" if more > 0 else ""
    picture = base64.b64encode(png).decode("ascii")
    return (
        f"<!doctype html><html><head>{GENERATOR}"
        f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>'
        "body{font:15px sans-serif;margin:2em;display:flex;gap:2em;flex-wrap:wrap}"
        "img{border:1px solid #999;max-width:100%}td{padding:0 1em 0 0}</style></head><body><div>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(query)}: {score:.4f}</p>"
        f'<img alt="the page, red where the query met it" src="data:image/png;base64,{picture}"></div>'
        f"<div><table><tr><th>query</th><th>page</th><th>score</th></tr>{rows}</table>{rest}</div></body></html>"
    )
