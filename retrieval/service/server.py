"""The retriever service: a FastAPI application around one retriever, with Search-R1's API.

    POST /retrieve {queries, topk, return_scores, return_images}    concurrent requests are searched together
    GET  /health                                     fingerprint, passages, limits
    GET  /metrics                                    Prometheus text

It stops gracefully on SIGTERM and SIGINT: running requests are answered first. It has no authentication: expose it
only to clients that may use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

import sleuth
from retrieval.service.config import ServiceLimits
from retrieval.service.wire import FINGERPRINT, HEALTH, METRICS, RETRIEVE, to_result
from retrieval.size import size_of
from sleuth.coalescer import Asked, shared_search
from sleuth.errors import ConfigError, DataError, RetrieverError
from sleuth.protocols import Retriever
from sleuth.types import Hit

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_FEW_HITS = 256
"""A response with at most this many hits is serialised inline; handing it to a thread would take longer."""
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class _Refused(Exception):  # noqa: N818 (an answer, caught in this file)
    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


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
        "passages": size_of(retriever),
        "version": sleuth.__version__,
        **limits.model_dump(),
    }
    searches = shared_search(retriever, metrics.on_search, max_batch=limits.max_batch)
    metrics.pending.set_function(lambda: searches.pending)

    @contextlib.asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        on_ready()
        yield
        searches.close(RetrieverError("the service is stopping"))

    app = FastAPI(title="Sleuth retriever", version=sleuth.__version__, lifespan=life)

    async def answer(scope: Scope, receive: Receive) -> bytes:
        asked, scores, images = _parse(await _read_body(scope, receive, limits), limits)
        metrics.queries.inc(len(asked.queries))
        waiting = searches.pending
        if waiting and waiting + len(asked.queries) > limits.max_pending:
            raise RetrieverError(f"{waiting} queries are already waiting", "retry later")
        found = await searches.ask_async(asked) if asked.queries else []
        if sum(map(len, found)) <= _FEW_HITS and not images:
            return _written(found, scores, images)
        return await asyncio.to_thread(_written, found, scores, images)

    async def retrieve(scope: Scope, receive: Receive, send: Send) -> None:
        """Search-R1's API: queries, topk and return_scores in, ``{"result": [...]}`` out."""
        started = time.perf_counter()
        status, content = 200, b""
        try:
            async with asyncio.timeout(limits.timeout_s):
                content = await answer(scope, receive)
        except Exception as error:  # noqa: BLE001 (every failure becomes a response with its status)
            status, detail = _explain(error, limits)
            content = json.dumps({"detail": detail}).encode()
        metrics.requests.labels(str(status)).inc()
        metrics.seconds.observe(time.perf_counter() - started)
        headers = {FINGERPRINT: fingerprint}
        if status == 503:
            headers["retry-after"] = "1"
        await Response(content, status, headers, "application/json")(scope, receive, send)

    app.add_middleware(_Shortcut, path=RETRIEVE, answer=retrieve)

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
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=max(1, round(limits.grace_s)),
            lifespan="on",
        )
        with _signals_end_it_well():
            uvicorn.Server(config).run(sockets=[listener])


class _Shortcut:
    """Handles POST to one path ahead of FastAPI's routing, which costs as much as parsing and writing the request."""

    def __init__(self, app: ASGIApp, path: str, answer: ASGIApp) -> None:
        self._app, self._path, self._answer = app, path, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self._path:
            await self._app(scope, receive, send)
        elif scope["method"] == "POST":
            await self._answer(scope, receive, send)
        else:
            await Response(status_code=405, headers={"allow": "POST"})(scope, receive, send)


async def _read_body(scope: Scope, receive: Receive, limits: ServiceLimits) -> bytes:
    too_large = _Refused(413, f"the request is larger than {limits.max_body_bytes} bytes")
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
        raise _Refused(408, f"the request did not arrive within {limits.body_timeout_s:g} s") from None
    return bytes(body)


def _written(found: Sequence[Sequence[Hit]], scores: bool, images: bool) -> bytes:
    """The response as JSON, one query at a time, so that other threads can run in between."""
    results = (json.dumps(to_result(hits, scores, images), allow_nan=False, separators=(",", ":")) for hits in found)
    return f'{{"result":[{",".join(results)}]}}'.encode()


def _parse(body: bytes, limits: ServiceLimits) -> tuple[Asked, bool, bool]:
    """The request, and whether scores and pictures are wanted."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise _Refused(422, "the request is not JSON") from None
    if not isinstance(content, dict):
        raise _Refused(422, 'the request is not an object {"queries", "topk", "return_scores"}')
    queries, topk, scores = content.get("queries"), content.get("topk"), content.get("return_scores")
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise _Refused(422, "queries is not a list of strings")
    if len(queries) > limits.max_queries:
        raise _Refused(422, f"{len(queries)} queries are more than {limits.max_queries}")
    longest = max(map(len, queries), default=0)
    if longest > limits.max_query_characters:
        raise _Refused(422, f"a query of {longest} characters is longer than {limits.max_query_characters}")
    if topk is None:
        topk = limits.default_topk
    if isinstance(topk, bool) or not isinstance(topk, int) or topk > limits.max_topk:
        raise _Refused(422, f"topk is {topk!r}, it must be a whole number from 1 to {limits.max_topk}")
    if len(queries) * topk > limits.max_hits:
        raise _Refused(
            422, f"{len(queries)} queries with topk {topk} are {len(queries) * topk} hits, more than {limits.max_hits}"
        )
    images = content.get("return_images")
    for name, value in (("return_scores", scores), ("return_images", images)):
        if value is not None and not isinstance(value, bool):
            raise _Refused(422, f"{name} is {value!r}, it must be true or false")
    if images and len(queries) * topk > limits.max_images:
        raise _Refused(
            422,
            f"{len(queries)} queries with topk {topk} may be more than {limits.max_images} images",
        )
    return Asked(queries, topk), bool(scores), bool(images)


def _explain(error: Exception, limits: ServiceLimits) -> tuple[int, str]:
    """HTTP status and message for a failed request."""
    if isinstance(error, _Refused):
        return error.status, error.detail
    if isinstance(error, ClientDisconnect):
        return 499, "the client went away"  # never sent; the number is nginx's, for the metrics
    if isinstance(error, TimeoutError):
        return 504, f"not answered within {limits.timeout_s:g} s"
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
