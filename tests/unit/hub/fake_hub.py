"""A hub on loopback: it lists the files of data sets and sends them, whole or from a place on, as the hub does."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REVISION = "a" * 40


@dataclass
class Hub:
    """``files``: by data set and name, their content. ``lies``: names whose content is sent with a byte changed."""

    files: dict[str, dict[str, bytes]]
    large: int = 100
    """Files of at least so many bytes are in LFS, with a SHA-256; others have git's hash."""
    lies: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    """Names of which only so many bytes are sent, once, before the connection breaks."""
    sent: list[tuple[str, int]] = field(default_factory=list)
    """Every transfer: the file and the byte from which it was sent."""
    url: str = ""

    def listing(self, repository: str) -> dict[str, Any]:
        siblings = []
        for name, content in self.files[repository].items():
            lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
            row = {"rfilename": name, "size": len(content), "blobId": git_hash(content)}
            siblings.append(row | ({"lfs": lfs} if len(content) >= self.large else {}))
        return {"id": repository, "_id": "1", "sha": REVISION, "siblings": siblings, "private": False, "tags": []}


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._file(body=False)

        def do_GET(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            repository = path.removeprefix("/api/datasets/").partition("/revision/")[0]
            if path.startswith("/api/datasets/"):
                found = repository in hub.files
                self._send(200 if found else 404, json.dumps(hub.listing(repository) if found else {}).encode(), {})
            else:
                self._file(body=True)

        def _file(self, body: bool) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            repository, _, rest = path.removeprefix("/datasets/").partition("/resolve/")
            name = rest.partition("/")[2]
            content = hub.files.get(repository, {}).get(name)
            if content is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            large = len(content) >= hub.large
            etag = hashlib.sha256(content).hexdigest() if large else git_hash(content)
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
            if large:
                headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
            if not body:
                self._send(200, b"", headers, length=len(content))
                return
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0] or 0)
            hub.sent.append((name, start))
            if name in hub.lies:
                content = bytes([content[0] ^ 1]) + content[1:]
            whole, content = len(content), content[start:]
            if start:
                headers["Content-Range"] = f"bytes {start}-{whole - 1}/{whole}"
            self._send(206 if start else 200, content[: hub.cut.pop(name, None)], headers, length=len(content))

        def _send(self, status: int, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body) if length is None else length)}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    return Handler


@contextlib.contextmanager
def fake_hub(files: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    """Serve ``files``; the hub's address is in ``url``."""
    hub = Hub(files)
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()
