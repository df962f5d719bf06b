"""The HTML page: template, style and script of ``assets/`` and the packed data, in one file.

Nothing that came from outside stands in the page as markup: names are escaped, all else is base64 of compressed JSON,
which the script writes into the page as text. A content security policy allows this script and this style only, so
that even a mistake there could not run what a passage says.
"""

from __future__ import annotations

import base64
import hashlib
import html
from importlib import resources

SCRIPTS = ("base.js", "charts.js", "overview.js", "turns.js", "browser.js", "main.js")
LIMIT = 5_000_000
"""Bytes that a page may have."""


def make_page(packed: bytes | None, title: str) -> str:
    """The page with its data in it; ``packed`` None: the page asks for ``data`` where it came from, again and again."""
    style = _asset("style.css")
    script = '"use strict";\n(() => {\n' + "\n".join(map(_asset, SCRIPTS)) + "\n})();\n"
    connect = "'none'" if packed is not None else "'self'"
    policy = (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; connect-src {connect}; "
        f"script-src '{_hash(script)}'; style-src '{_hash(style)}'"
    )
    values = {
        "policy": policy,
        "title": html.escape(title),
        "style": style,
        "script": script,
        "live": "" if packed is not None else "yes",
        "data": base64.b64encode(packed or b"").decode("ascii"),
    }
    parts = _asset("page.html").split("{{")
    filled = [parts[0]]
    for part in parts[1:]:
        name, _, rest = part.partition("}}")
        filled += [values[name], rest]
    return "".join(filled)


def overhead() -> int:
    """Bytes of a page without data."""
    return len(make_page(b"", "").encode("utf-8")) + 1_000


def _asset(name: str) -> str:
    return (resources.files("cli.report") / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
