"""What goes over the wire: Search-R1's contract, ``POST /retrieve {queries, topk, return_scores}``.

A query is a text, or a picture as ``{"image": base64}``, which is ours.

With scores the answer is ``{"result": [[{"document": …, "score": …}]]}``, without ``{"result": [[document, …]]}``.
A document is ``{"id", "contents": "\\"Title\\"\\ntext"}``; ours carries ``title`` and ``text`` beside it, so that
a title or text of any shape comes through unchanged. A picture comes as ``"image": {"name", "sha256"}``, with its bytes
as base64 in ``"data"`` if the request says ``return_images``.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hub.pictures import read_image
from sleuth.errors import RetrieverError
from sleuth.pictures import Query
from sleuth.types import Hit, Image, Passage

RETRIEVE = "/retrieve"
HEALTH = "/health"
METRICS = "/metrics"
FINGERPRINT = "x-sleuth-fingerprint"
"""Header of every answer: which retriever gave it."""


def to_query(query: Query) -> str | dict[str, str]:
    return query if isinstance(query, str) else {"image": _encoded(query)}


def _encoded(image: Image) -> str:
    return base64.b64encode(read_image(image)).decode("ascii")


def to_document(passage: Passage, images: bool = False) -> dict[str, Any]:
    contents = f'"{passage.title}"\n{passage.text}'
    document = {"id": passage.id, "contents": contents, "title": passage.title, "text": passage.text}
    if passage.image is None:
        return document
    image = {"name": passage.image.name, "sha256": passage.image.sha256}
    data = {"data": _encoded(passage.image)} if images else {}
    return {**document, "image": {**image, **data}}


def to_result(hits: Sequence[Hit], scores: bool, images: bool = False) -> list[dict[str, Any]]:
    """The answer to one query."""
    if scores:
        return [{"document": to_document(hit.passage, images), "score": hit.score} for hit in hits]
    return [to_document(hit.passage, images) for hit in hits]


def read_answer(body: Any, queries: int, k: int) -> list[list[Hit]]:
    """The hits of a whole answer with scores. Raises RetrieverError when it is not what the contract says."""
    result = body.get("result") if isinstance(body, Mapping) else None
    if not isinstance(result, list) or not all(isinstance(found, list) for found in result):
        raise RetrieverError("the service's answer has no list 'result'", "is it a Search-R1 retriever?")
    if len(result) != queries:
        raise RetrieverError(f"the service answered {len(result)} of {queries} queries")
    return [_read_hits(found, k) for found in result]


def _read_hits(found: Sequence[Any], k: int) -> list[Hit]:
    """A search engine's hits have no scores, only an order, as those of Search-R1's Google and SerpAPI servers: the
    score is 1 / rank then."""
    ranked = not any(isinstance(item, Mapping) and "score" in item for item in found)
    hits = []
    for rank, item in enumerate(found[:k], start=1):
        document, score = (item.get("document"), item.get("score")) if isinstance(item, Mapping) else (None, None)
        if ranked:
            score = 1 / rank
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise RetrieverError("the service's answer has a hit without a score")
        hits.append(Hit(_read_document(document), float(score), rank))
    return hits


def _read_document(document: Any) -> Passage:
    """Servers differ: ours sends all, Search-R1's the corpus row (no title), its BM25 no id, its reranker the contents
    alone, its search engines the contents as ``{"contents"}``."""
    if isinstance(document, str):
        document = {"contents": document}
    if not isinstance(document, Mapping):
        raise RetrieverError("the service's answer has a hit without a document")
    contents, title, text = (document.get(key) for key in ("contents", "title", "text"))
    if not (isinstance(title, str) and isinstance(text, str)):
        if not isinstance(contents, str):
            raise RetrieverError("the service's answer has a document without contents")
        title, text = _split(contents)
    identifier = document.get("id")
    if identifier is None:
        identifier = hashlib.sha256(f"{title}\n{text}".encode()).hexdigest()[:32]
    return Passage(str(identifier), title, text, _read_image(document.get("image")))


def _read_image(value: Any) -> Image | None:
    """None for another server's ``image``: Search-R1's sends its corpus rows, whatever they hold."""
    name, digest = (value.get(key) for key in ("name", "sha256")) if isinstance(value, Mapping) else (None, None)
    if not (isinstance(name, str) and isinstance(digest, str)):
        return None
    if value.get("data") is None:
        return Image(name, digest)
    try:
        data = base64.b64decode(value["data"], validate=True)
    except (TypeError, ValueError):
        raise RetrieverError(f"the service's answer has an image, {name}, that is not base64") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise RetrieverError(f"the service's answer has an image, {name}, whose bytes do not match its sha256")
    return Image(name, digest, data)


def _split(contents: str) -> tuple[str, str]:
    """Title and text of ``"Title"\\ntext``; a single line is text."""
    head, newline, text = contents.partition("\n")
    if not newline:
        return "", contents
    return head.strip().removeprefix('"').removesuffix('"'), text
