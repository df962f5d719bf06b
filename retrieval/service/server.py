"""The retriever service: a FastAPI application around one retriever, with Search-R1's API.

    POST /retrieve {queries, topk, return_scores, return_images}    concurrent requests are searched together;
                                                                    a query may be a picture
    GET  /health                                     fingerprint, passages, limits
    GET  /metrics                                    Prometheus text
    GET  /docs, /openapi.json                        all of these described

It stops gracefully on SIGTERM and SIGINT: running requests are answered first. It has no authentication: expose it
only to clients that may use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

import sleuth
from retrieval.service.config import ServiceLimits
from retrieval.service.protocol import timed_protocol
from retrieval.service.request import DESCRIPTION, Refused, may_hold_pictures, read_request
from retrieval.service.wire import FINGERPRINT, HEALTH, METRICS, RETRIEVE, to_result
from retrieval.size import size_of
from sleuth.coalescer import Asked, SharedSearch
from sleuth.errors import ConfigError, DataError, RetrieverError
from sleuth.pictures import takes_images
from sleuth.protocols import Retriever
from sleuth.query_forms import form_of
from sleuth.types import Hit

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_FEW_HITS = 256
"""A response with at most this many hits is serialised inline; handing it to a thread would take longer."""
_FEW_BYTES = 32_768
"""A larger request is read in a thread, which takes longer than handing it over."""
_DECODERS = 2
"""Threads that read requests with pictures: a few bytes may be millions of pixels. Others wait for their turn."""
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class _Metrics:
    """Metrics of one service, separate from any other in the process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("sleuth_requests", "Answered requests.", ["status"], registry=self.registry)
        self.queries = Counter("sleuth_queries", "Queries asked.", registry=self.registry)
        self.pending = Gauge("sleuth_pending_queries", "Queries waiting to be searched.", registry=self.registry)
        self.seconds = Histogram(
            "sleuth_request_seconds", "From request to answer.", buckets=_SECONDS, registry=self.registry
        )
        self.search = Histogram(
            "sleuth_search_seconds", "One call of the retriever.", buckets=_SECONDS, registry=self.registry
        )
        self.batch = Histogram(
            "sleuth_batch_queries", "Distinct queries per call.", buckets=_SIZES, registry=self.registry
        )

    def on_search(self, queries: int, seconds: float) -> None:
        self.batch.observe(queries)
        self.search.observe(seconds)


def make_app(
    retriever: Retriever,
    limits: ServiceLimits | None = None,
    *,
    on_ready: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The service as an ASGI application."""
    limits = limits or ServiceLimits()
    metrics = _Metrics()
    fingerprint = retriever.fingerprint
    health = {
        "status": "ok",
        "fingerprint": fingerprint,
        "query_form": form_of(retriever),
        "passages": size_of(retriever),
        "version": sleuth.__version__,
        **limits.model_dump(),
    }
    pictures = takes_images(retriever)
    decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decoder")
    searches = SharedSearch(retriever, metrics.on_search, max_batch=limits.max_batch)
    metrics.pending.set_function(lambda: searches.pending)

    @contextlib.asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        on_ready()
        yield
        searches.close(RetrieverError("the service is stopping"))
        decoders.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(title="Sleuth retriever", version=sleuth.__version__, lifespan=life)

    async def read(body: bytes) -> tuple[Asked, bool, bool]:
        if pictures and may_hold_pictures(body):
            return await asyncio.get_running_loop().run_in_executor(decoders, read_request, body, limits, pictures)
        if len(body) < _FEW_BYTES:
            return read_request(body, limits, pictures)
        return await asyncio.to_thread(read_request, body, limits, pictures)

    async def answer(asked: Asked, scores: bool, images: bool) -> bytes:
        metrics.queries.inc(len(asked.queries))
        waiting = searches.pending
        if waiting and waiting + len(asked.queries) > limits.max_pending:
            raise RetrieverError(f"{waiting} queries are already waiting", "retry later")
        found = await searches.ask_async(asked) if asked.queries else []
        if sum(map(len, found)) <= _FEW_HITS and not images:
            return _written(found, scores, images)
        return await asyncio.to_thread(_written, found, scores, images)

    async def respond(scope: Scope, receive: Receive) -> Response:
        started = time.perf_counter()
        status, content, seconds = 200, b"", limits.timeout_s
        try:
            body = await _read_body(scope, receive, limits)
            async with asyncio.timeout(seconds) as patience:
                asked, scores, images = await read(body)
                more = limits.timeout_s * max(math.ceil(len(asked.queries) / limits.max_batch) - 1, 0)
                patience.reschedule((patience.when() or 0.0) + more)
                seconds += more
                content = await answer(asked, scores, images)
        except Exception as error:  # noqa: BLE001 (every failure becomes a response with its status)
            status, detail = _explain(error, seconds)
            content = json.dumps({"detail": detail}).encode()
        metrics.requests.labels(str(status)).inc()
        metrics.seconds.observe(time.perf_counter() - started)
        headers = {FINGERPRINT: fingerprint}
        if status == 503:
            headers["retry-after"] = "1"
        return Response(content, status, headers, "application/json")

    app.add_middleware(_Shortcut, path=RETRIEVE, respond=respond)

    @app.post(RETRIEVE, **DESCRIPTION)
    async def retrieve(request: Request) -> Response:
        """Search-R1's API. Requests that arrive together are searched together."""
        return await respond(request.scope, request.receive)

    @app.get(HEALTH)
    async def tell_health() -> dict[str, Any]:
        return health

    @app.get(METRICS)
    async def tell_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def serve(
    retriever: Retriever,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: ServiceLimits | None = None,
    on_ready: Callable[[str], None] = lambda _url: None,
) -> None:
    """Serve until SIGTERM or SIGINT; ``on_ready`` gets the address. Port 0 picks a free one.

    Raises ConfigError if it cannot listen there.
    """
    limits = limits or ServiceLimits()
    with _listen(host, port) as listener:
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        app = make_app(retriever, limits, on_ready=lambda: on_ready(url))
        with _signals_end_it_well():
            uvicorn.Server(server_config(app, limits)).run(sockets=[listener])


def server_config(app: ASGIApp, limits: ServiceLimits, log_level: str = "warning") -> uvicorn.Config:
    """How uvicorn serves ``app``."""
    return uvicorn.Config(
        app,
        http=timed_protocol(limits.header_timeout_s),
        log_level=log_level,
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(limits.grace_s)),
        lifespan="on",
    )


Respond = Callable[[Scope, Receive], Awaitable[Response]]


class _Shortcut:
    """Handles POST to one path ahead of FastAPI's routing, which costs as much as parsing and writing the request."""

    def __init__(self, app: ASGIApp, path: str, respond: Respond) -> None:
        self._app, self._path, self._respond = app, path, respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self._path:
            await self._app(scope, receive, send)
        elif scope["method"] == "POST":
            await (await self._respond(scope, receive))(scope, receive, send)
        else:
            await Response(status_code=405, headers={"allow": "POST"})(scope, receive, send)


async def _read_body(scope: Scope, receive: Receive, limits: ServiceLimits) -> bytes:
    too_large = Refused(413, f"the request is larger than {limits.max_body_bytes} bytes")
    declared = dict(scope["headers"]).get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limits.max_body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > limits.max_body_bytes:
                    raise too_large
    except TimeoutError:
        raise Refused(408, f"the request did not arrive within {limits.body_timeout_s:g} s") from None
    return bytes(body)


def _written(found: Sequence[Sequence[Hit]], scores: bool, images: bool) -> bytes:
    """The response as JSON, one query at a time, so that other threads can run in between."""
    results = (json.dumps(to_result(hits, scores, images), allow_nan=False, separators=(",", ":")) for hits in found)
    return f'{{"result":[{",".join(results)}]}}'.encode()


def _explain(error: Exception, seconds: float) -> tuple[int, str]:
    """HTTP status and message for a failed request, which had ``seconds``."""
    if isinstance(error, Refused):
        return error.status, error.detail
    if isinstance(error, ClientDisconnect):
        return 499, "the client went away"  # never sent; the number is nginx's, for the metrics
    if isinstance(error, TimeoutError):
        return 504, f"not answered within {seconds:g} s"
    if isinstance(error, ConfigError):
        return 422, str(error)
    if isinstance(error, RetrieverError | DataError):  # the latter: a picture whose bytes are gone
        return 503, str(error)
    logging.getLogger("sleuth.service").exception("a request failed", exc_info=error)
    return 500, f"{type(error).__name__} in the service"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2_048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}", "choose another --port") from None


@contextlib.contextmanager
def _signals_end_it_well() -> Iterator[None]:
    """uvicorn stops on these signals and then raises them again, when there is nothing left to stop."""
    both = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in both}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
