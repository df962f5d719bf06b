"""``POST /retrieve``: what a request may hold and how it is read, and both sides as /docs shows them.

Values are read as Search-R1's server reads them: ``topk`` may be ``"3"`` or ``3.0``, and 0 asks for the default, as no
``topk`` does; ``return_scores`` may be ``1`` or ``"yes"``. A query that is an object is a picture, decoded here to see
that it is whole and within the limits; if the retriever takes none, it is refused before.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from retrieval.service.config import ServiceLimits
from sleuth.coalescer import Asked
from sleuth.errors import DataError
from sleuth.pictures import Query
from sleuth.types import Image

_WHOLE: TypeAdapter[int] = TypeAdapter(int)
_FLAG: TypeAdapter[bool] = TypeAdapter(bool)


class Refused(Exception):  # noqa: N818 (an answer of the service)
    """A request that is answered with this HTTP status."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class PictureQuery(BaseModel):
    """A query that is a picture, for an index whose encoder reads pictures of queries."""

    image: Annotated[
        str,
        Field(
            description="A PNG or JPEG as base64; /health tells the limits: max_image_bytes, max_image_pixels, and "
            "max_query_images per request.",
            json_schema_extra={"contentEncoding": "base64"},
        ),
    ]


class RetrieveRequest(BaseModel):
    """Other keys are ignored."""

    queries: list[str | PictureQuery]
    topk: Annotated[int | None, Field(description="Hits per query; 0 or null: the service's default.")] = None
    return_scores: Annotated[bool | None, Field(description="Documents with their scores.")] = False
    return_images: Annotated[bool | None, Field(description="The bytes of pictures, as base64.")] = False


class Picture(BaseModel):
    name: str
    sha256: str
    data: Annotated[str | None, Field(description="base64, if return_images.")] = None


class Document(BaseModel):
    id: str
    contents: Annotated[str, Field(description='`"Title"\\ntext`')]
    title: str
    text: str
    image: Picture | None = None


class ScoredDocument(BaseModel):
    document: Document
    score: float


class RetrieveAnswer(BaseModel):
    """The hits of each query, best first; with ``return_scores`` each with its score."""

    result: list[list[ScoredDocument] | list[Document]]


class Fault(BaseModel):
    detail: str


FAULTS = {
    408: "The request took too long to arrive.",
    413: "The request is too large.",
    422: "The request is not one, or is beyond a limit of the service.",
    503: "The index failed, or too many queries wait: ask again.",
    504: "Not answered in time.",
}

DESCRIPTION: dict[str, Any] = {
    "summary": "Search: the hits of each query",
    "response_model": RetrieveAnswer,
    "responses": {status: {"model": Fault, "description": text} for status, text in FAULTS.items()},
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": RetrieveRequest.model_json_schema(),
                    "example": {"queries": ["who founded the town of Arden"], "topk": 3, "return_scores": True},
                }
            },
        }
    },
}
"""The endpoint in FastAPI's terms; the request is read by `read_request`, not by FastAPI."""


def may_hold_pictures(body: bytes) -> bool:
    """Whether a query may be an object; a brace in a text looks like one. In every encoding of JSON it is this byte."""
    return body.count(b"{") > 1


def read_request(body: bytes, limits: ServiceLimits, pictures: bool) -> tuple[Asked, bool, bool]:
    """The request, and whether scores and pictures are wanted. Raises Refused, also if ``pictures`` are not allowed."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(422, "the request is not JSON") from None
    if not isinstance(content, dict):
        raise Refused(422, 'the request is not an object {"queries", "topk", "return_scores"}')
    queries = _read_queries(content.get("queries"), limits, pictures)
    topk = _read_topk(content.get("topk"), limits)
    hits = len(queries) * topk
    if hits > limits.max_hits:
        raise Refused(422, f"{len(queries)} queries with topk {topk} are {hits} hits, more than {limits.max_hits}")
    scores, images = (_read_flag(name, content.get(name)) for name in ("return_scores", "return_images"))
    if images and hits > limits.max_images:
        raise Refused(422, f"{len(queries)} queries with topk {topk} may be more than {limits.max_images} images")
    return Asked(queries, topk), scores, images


def _read_queries(queries: Any, limits: ServiceLimits, allowed: bool) -> list[Query]:
    if not isinstance(queries, list) or not all(isinstance(query, str | dict) for query in queries):
        raise Refused(422, "queries is not a list of strings")
    if len(queries) > limits.max_queries:
        raise Refused(422, f"{len(queries)} queries are more than {limits.max_queries}")
    pictures = sum(isinstance(query, dict) for query in queries)
    if pictures and not allowed:
        raise Refused(422, "this retriever reads no pictures of queries; ask in words")
    if pictures > limits.max_query_images:
        raise Refused(422, f"{pictures} pictures among the queries are more than {limits.max_query_images}")
    longest = max((len(query) for query in queries if isinstance(query, str)), default=0)
    if longest > limits.max_query_characters:
        raise Refused(422, f"a query of {longest} characters is longer than {limits.max_query_characters}")
    return [
        query if isinstance(query, str) else _read_picture(query, f"queries[{place}]", limits)
        for place, query in enumerate(queries)
    ]


def _read_picture(query: dict[str, Any], name: str, limits: ServiceLimits) -> Image:
    from retrieval.pages.pictures import read_picture  # Pillow: not for services of text

    encoded = query.get("image")
    if not isinstance(encoded, str):
        raise Refused(422, f'{name} is neither a string nor {{"image": base64}}')
    if len(encoded) * 3 // 4 > limits.max_image_bytes + 2:  # padding
        raise Refused(422, f"the picture {name} is larger than {limits.max_image_bytes} bytes")
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, f"the picture {name} is not base64") from None
    if len(data) > limits.max_image_bytes:
        raise Refused(422, f"the picture {name} is larger than {limits.max_image_bytes} bytes")
    try:
        picture = read_picture(data, f"the picture {name}", limits.max_image_pixels)
    except DataError as error:
        raise Refused(422, str(error)) from None
    return Image("query", picture.sha256, picture.data)


def _read_topk(value: Any, limits: ServiceLimits) -> int:
    topk = limits.default_topk if value is None else _whole(value)
    if topk is None or not 0 <= topk <= limits.max_topk:
        raise Refused(422, f"topk is {value!r:.100}, it must be a whole number from 1 to {limits.max_topk}")
    return topk or limits.default_topk


def _whole(value: Any) -> int | None:
    """None for what is no whole number. ``true`` is none here, where pydantic would read 1."""
    if isinstance(value, int):
        return None if isinstance(value, bool) else value
    try:
        return _WHOLE.validate_python(value)
    except ValidationError:
        return None


def _read_flag(name: str, value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    try:
        return _FLAG.validate_python(value)
    except ValidationError:
        raise Refused(422, f"{name} is {value!r:.100}, it must be true or false") from None
