"""Serves the report of runs in progress: a page, and ``data``, which is regenerated when the runs have changed.

Uses the standard library's server, bound to the loopback address by default; it reads only the run folders and serves
only these two paths.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cli.console import error_console
from cli.report.page import make_page
from sleuth.errors import SleuthError
from workflows.report.collect import run_names, state_of
from workflows.report.compact import pack_runs

BUDGET = 4_000_000
"""Maximum compressed size of one response, in bytes."""
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(slots=True)
class Feed:
    """The newest data of the runs, cached while they have not changed."""

    runs: Sequence[Path]
    limit: int
    _state: object = None
    _packed: bytes = b""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> tuple[str, bytes]:
        """A tag that changes with the data, and the data."""
        with self._lock:
            state = state_of(self.runs)
            if state != self._state:
                self._packed, self._state = pack_runs(self.runs, self.limit, BUDGET), state
            return f'"{hashlib.sha256(self._packed).hexdigest()[:20]}"', self._packed


def make_server(runs: Sequence[Path], limit: int, host: str, port: int) -> ThreadingHTTPServer:
    """A server that is bound to its port but not serving yet."""
    page = make_page(None, f"Sleuth: {', '.join(run_names(runs))}").encode("utf-8")
    return ThreadingHTTPServer((host, port), _handler(page, Feed(runs, limit).read, host in _LOOPBACK))


def serve_report(runs: Sequence[Path], limit: int, host: str, port: int) -> None:
    """Serve until interrupted."""
    with make_server(runs, limit, host, port) as server:
        error_console().print(f"http://{host}:{server.server_port}/  (Ctrl-C stops)", markup=False, soft_wrap=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            error_console().print("stopped")


def _handler(page: bytes, read: Callable[[], tuple[str, bytes]], local: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 30

        def do_GET(self) -> None:
            name = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host") or ""
            if local and name not in _LOOPBACK:  # a foreign name that resolves here must not read the runs
                self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"unknown host name\n")
            elif self.path in ("/", "/index.html"):
                self._answer(HTTPStatus.OK, "text/html; charset=utf-8", page)
            elif self.path == "/data":
                self._data()
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"there are / and /data\n")

        def _data(self) -> None:
            try:
                tag, packed = read()
            except (SleuthError, OSError) as error:
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", f"{error}\n".encode())
                return
            if self.headers.get("If-None-Match") == tag:
                self._answer(HTTPStatus.NOT_MODIFIED, "application/octet-stream", b"", tag)
            else:
                self._answer(HTTPStatus.OK, "application/octet-stream", packed, tag)

        def _answer(self, status: HTTPStatus, kind: str, body: bytes, tag: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cache-Control", "no-cache")
            if tag:
                self.send_header("ETag", tag)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """Silent: errors are reported to the client."""

    return Handler
