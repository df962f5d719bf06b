"""Client of a remote retriever: `sleuth serve-retriever`, or Search-R1's own server.

Timeouts, retries and the circuit breaker come from `retrieval.resilient`, which wraps this like any retriever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import httpx

from hub.pictures import read_image
from retrieval.indexes import check_k
from retrieval.service.wire import FINGERPRINT, HEALTH, RETRIEVE, read_answer, to_query
from sleuth.errors import ConfigError, RetrieverError
from sleuth.pictures import Query
from sleuth.query_forms import QueryForm
from sleuth.types import Hit, Image

CONNECTIONS = 64
MAX_QUERIES = 256
"""Queries per request, unless the service's limit is lower."""
MAX_PICTURES = 16
"""Pictures per request, unless the service names its limit."""
PICTURE_BYTES = 8 * 2**20
"""Pictures of a request together, unless it is a single one; in base64 they take a third more."""


class RemoteRetriever:
    """Searches at ``url`` (an address, or that address with ``/retrieve``) over pooled connections.

    A service that reports a fingerprint must keep it: if the address later serves another index, searches
    fail instead of mixing hits. One that reports none is identified by its address. Raises ConfigError for
    an invalid address, RetrieverError if nothing answers there.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 30.0,
        connections: int = CONNECTIONS,
        max_queries: int = MAX_QUERIES,
        images: bool = False,
    ) -> None:
        self.url = _base(url)
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        # proxies in the environment are for the web, not for an internal service
        self._client = httpx.Client(
            timeout=httpx.Timeout(timeout_s),
            limits=limits,
            trust_env=False,
            verify=self.url.startswith("https:"),  # loading unneeded certificates takes a second
        )
        health = self._ask_health()
        self.passages: int | None = _count(health.get("passages"))
        self.most_hits: int | None = _count(health.get("max_topk"))
        self._max_queries = min(max_queries, _count(health.get("max_queries")) or max_queries)
        self._most_pictures = _count(health.get("max_query_images")) or MAX_PICTURES
        self._images = images
        self._max_hits = _count(health.get("max_images" if images else "max_hits"))
        told, form = health.get("fingerprint"), health.get("query_form")
        self.query_form: QueryForm = next((known for known in get_args(QueryForm) if known == form), "query")
        self._told = told if isinstance(told, str) and told else None

    @property
    def fingerprint(self) -> str:
        """The served retriever's, so that caches and runs stay valid across addresses; else one of the address."""
        return self._told or hashlib.sha256(f"remote {self.url}".encode()).hexdigest()[:32]

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Like the served retriever; empty queries are not sent. Raises ConfigError for refused requests."""
        k = check_k(k, self.passages, self.url)
        cleaned = [query.strip().encode("utf-8", "replace").decode("utf-8") for query in queries]
        asked = [query for query in cleaned if query]
        found: list[list[Hit]] = []
        together = self._together(k)
        for start in range(0, len(asked), together):
            found += self._retrieve(asked[start : start + together], k)
        answers = iter(found)
        return [next(answers) if query else [] for query in cleaned]

    def search_images(self, images: Sequence[Image], k: int) -> list[list[Hit]]:
        """Like the served retriever. Raises ConfigError for pictures that the service refuses, or takes none."""
        k = check_k(k, self.passages, self.url)
        found: list[list[Hit]] = []
        for group in _grouped(images, min(self._most_pictures, self._together(k))):
            found += self._retrieve(group, k)
        return found

    def _together(self, k: int) -> int:
        """Queries of a request at most."""
        return min(self._max_queries, max((self._max_hits or k * self._max_queries) // k, 1))

    def close(self) -> None:
        """Close the pooled connections."""
        self._client.close()

    def _retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        body: dict[str, Any] = {"queries": [*map(to_query, queries)], "topk": k, "return_scores": True}
        if self._images:
            body["return_images"] = True
        try:
            answer = self._client.post(self.url + RETRIEVE, json=body)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if answer.status_code in (400, 413, 422):
            raise ConfigError(f"the retriever service at {self.url} refused the request: {_detail(answer)}")
        if answer.status_code != 200:
            raise RetrieverError(
                f"the retriever service at {self.url} answered {answer.status_code}: {_detail(answer)}"
            )
        told = answer.headers.get(FINGERPRINT)
        if self._told is not None and told != self._told:
            raise RetrieverError(
                f"{self.url} now serves another index than when it was opened", "serve the first one again"
            )
        return read_answer(_json(answer), len(queries), k)

    def _ask_health(self) -> dict[str, Any]:
        """The service's /health response; empty if it has none."""
        try:
            answer = self._client.get(self.url + HEALTH)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        content = _json(answer) if answer.status_code == 200 else None
        return content if isinstance(content, dict) else {}

    def _unreachable(self, error: httpx.HTTPError) -> RetrieverError:
        reason = str(error) or type(error).__name__
        return RetrieverError(
            f"no retriever service answers at {self.url}: {reason}", "start one with: sleuth serve-retriever INDEX"
        )


def _grouped(images: Sequence[Image], most: int) -> Iterator[list[Image]]:
    """``images`` in requests of at most ``most``, whose bytes fit into one."""
    group: list[Image] = []
    size = 0
    for image in images:
        own = len(read_image(image))
        if group and (len(group) == most or size + own > PICTURE_BYTES):
            yield group
            group, size = [], 0
        group.append(image)
        size += own
    if group:
        yield group


def _base(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ConfigError(f"{url!r} is not an address: {error}", "for example http://127.0.0.1:8000") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"{url!r} is not the address of a service", "for example http://127.0.0.1:8000")
    return url.rstrip("/").removesuffix(RETRIEVE)


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None


def _detail(answer: httpx.Response) -> str:
    content = _json(answer)
    detail = content.get("detail") if isinstance(content, dict) else None
    return str(detail or answer.reason_phrase)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
