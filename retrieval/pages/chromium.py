"""HTML as a browser shows it: headless Chromium prints it to PDF, whose pages are read like any PDF's.

Scripts do not run, no host is found and no other document is shown within, so that a page is what its file says, with
the pictures and styles that it names. A page that sends the browser elsewhere is not printed.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retrieval.pages.pdf import open_pdf
from sleuth.errors import ConfigError, DataError

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    *("--headless", "--disable-gpu", "--no-first-run", "--disable-extensions", "--no-pdf-header-footer"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
_DOCTYPE = re.compile(rb"\s*(\xef\xbb\xbf)?\s*<!doctype[^>]*>", re.IGNORECASE)
_POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"script-src 'none'; frame-src 'none'; object-src 'none'\">"
    '<base href="{}/">'
)
_PATIENCE_S = 120


def find_chromium() -> str:
    """The program. Raises ConfigError if none is installed."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        raise ConfigError("renderer chromium needs Chromium or Chrome on the path", "install it, or use pillow")
    return found


@contextmanager
def printed(file: Path) -> Iterator[Any]:
    """The PDF of an HTML file, open. Raises DataError if the browser makes none."""
    with tempfile.TemporaryDirectory(prefix="sleuth-print-") as folder:
        out = Path(folder) / "page.pdf"
        copy = Path(folder) / "page.html"
        copy.write_bytes(_without_scripts(file))
        root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        words = [find_chromium(), *_FLAGS, *root, f"--user-data-dir={folder}/profile", f"--print-to-pdf={out}"]
        try:
            subprocess.run([*words, copy.as_uri()], capture_output=True, timeout=_PATIENCE_S, check=False)
        except subprocess.TimeoutExpired:
            raise DataError(
                f"Chromium did not print {file} within {_PATIENCE_S} s", "use the renderer pillow"
            ) from None
        if not out.exists():
            raise DataError(f"Chromium cannot print {file}", "use the renderer pillow")
        with open_pdf(out) as document:
            yield document


def _without_scripts(file: Path) -> bytes:
    """The HTML with a policy that forbids scripts, and the folder that its links start from."""
    content = file.read_bytes()
    begin = found.end() if (found := _DOCTYPE.match(content)) else 0
    policy = _POLICY.format(html.escape(file.resolve().parent.as_uri()))
    return content[:begin] + policy.encode("ascii") + content[begin:]
