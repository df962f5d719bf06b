"""A writer that follows a script, and a server that answers with faults: what tests of synthesis share."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from agent.writing.asks import Ask, OnReply, Reply, Weigh, Weight

Say = Callable[[Ask], str]


class ScriptedWriter:
    """Replies with ``say(ask)``. ``dies_at``: the process ends, so to speak, before the n-th reply."""

    name = "scripted"
    reserved = frozenset({"<|im_end|>"})

    def __init__(self, say: Say, dies_at: int | None = None) -> None:
        self.say = say
        self.dies_at = dies_at
        self.asked: list[Ask] = []

    def write(self, asks: Sequence[Ask], on_reply: OnReply) -> None:
        for ask in asks:
            if self.dies_at is not None and len(self.asked) == self.dies_at:
                raise KeyboardInterrupt
            self.asked.append(ask)
            text = self.say(ask)
            on_reply(ask, Reply(text, "stop", len(str(ask.messages)), len(text)))


class WeighingWriter(ScriptedWriter):
    """Also says how likely a text is: the share of its words that the prompt has."""

    def weigh(self, asks: Sequence[Weigh]) -> list[Weight]:
        return [Weight(self._weight(ask), len(str(ask.messages)) + len(ask.text)) for ask in asks]

    def _weight(self, ask: Weigh) -> float | None:
        prompt, words = ask.messages[-1].text.lower(), ask.text.lower().split()
        return sum(word in prompt for word in words) / len(words) - 1 if words else None


def chance(*parts: object) -> float:
    """A number from 0 to 1 that depends on ``parts`` alone."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def write_corpus(folder: Path, count: int = 12) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "corpus.jsonl"
    towns = (
        "Arden",
        "Brill",
        "Corvo",
        "Dunmore",
        "Estray",
        "Fenwick",
        "Galt",
        "Hythe",
        "Irwell",
        "Jarrow",
        "Kells",
        "Lund",
    )
    wares = ("glass", "rope", "salt", "paper", "wool", "tin", "cork", "silk", "lace", "ink", "tea", "soap")
    rows = []
    for i, (town, ware) in enumerate(itertools.islice(itertools.cycle(zip(towns, wares, strict=True)), count)):
        text = f"{town} number {i} lies on a river and has made {ware} for ages."
        rows.append({"_id": f"p{i}", "title": town, "text": text})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class ChatServer:
    """Chat completions on loopback. ``plan(n, body)`` says what the n-th request gets: a status, a text, bytes that
    end before their length, or headers and whole bytes.
    """

    def __init__(self, plan: Callable[[int, dict[str, Any]], int | str | bytes | tuple[dict[str, str], bytes]]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.send(self, 200, {"data": [{"id": "small"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.bodies.append(body)
                    number = len(outer.bodies) - 1
                answer = plan(number, body)
                if isinstance(answer, int):
                    outer.send(self, answer, {"error": {"message": "no room\nnow"}})
                elif isinstance(answer, tuple):
                    self.send_response(200)
                    for name, value in {**answer[0], "Content-Length": str(len(answer[1]))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(answer[1])
                elif isinstance(answer, bytes):  # a body that ends before its length
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(answer) + 100))
                    self.end_headers()
                    self.wfile.write(answer)
                    self.close_connection = True
                else:
                    message = {"role": "assistant", "content": answer}
                    usage = {"prompt_tokens": 10, "completion_tokens": 5}
                    outer.send(self, 200, {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def send(self, handler: BaseHTTPRequestHandler, status: int, content: object) -> None:
        data = json.dumps(content).encode()
        handler.send_response(status)
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
