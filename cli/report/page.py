"""The HTML page: template, style and script of ``assets/`` and the packed data, in one file.

Nothing from outside is markup in the page: names are escaped, everything else is base64 of compressed JSON, which the
script inserts as text. A content security policy allows only this script and style, so that even a bug there could
not execute the content of a passage.
"""

from __future__ import annotations

import base64
import hashlib
import html
from importlib import resources

SCRIPTS = ("base.js", "charts.js", "overview.js", "turns.js", "browser.js", "changes.js", "main.js")
LIMIT = 5_000_000
"""Maximum size of a page, in bytes."""


def make_page(packed: bytes | None, title: str) -> str:
    """The page with its data embedded; with ``packed`` None, the page polls its server for ``data``."""
    style = _asset("style.css")
    script = '"use strict";\n(() => {\n' + "\n".join(map(_asset, SCRIPTS)) + "\n})();\n"
    connect = "'none'" if packed is not None else "'self'"
    policy = (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; connect-src {connect}; "
        f"img-src data:; script-src '{_hash(script)}'; style-src '{_hash(style)}'"
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
    """Size of a page without data, in bytes."""
    return len(make_page(b"", "").encode("utf-8")) + 1_000


def _asset(name: str) -> str:
    return (resources.files("cli.report") / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
