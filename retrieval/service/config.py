"""Settings of the retriever service and of its client. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hub.pictures import MAX_PIXELS
from retrieval.config import Progress, RetrieverSettings
from sleuth.protocols import Retriever
from sleuth.settings import Count, Seconds, Settings


class ServiceLimits(Settings):
    """Limits of one service; a request beyond them is refused with the HTTP status given."""

    max_batch: Count = 256
    """Queries searched in one call: of several requests, or of a large one, whose calls take turns with others."""
    max_pending: Count = 65_536
    """Queries that may wait; further requests are told to retry (503)."""
    max_queries: Count = 8_192
    """Queries per request (422). Search-R1's trainer sends a batch's in one: 2,560 of 512 x 5 rollouts."""
    max_query_characters: Count = 50_000
    """Characters per query (422)."""
    max_query_images: Count = 16
    """Pictures among the queries of a request (422)."""
    max_image_bytes: Count = 8 * 2**20
    """Size of such a picture, without base64 (422)."""
    max_image_pixels: Annotated[Count, Field(le=MAX_PIXELS)] = 16_000_000
    """Its width times its height (422): in memory it takes 3 bytes a pixel. More than 40 million are never decoded."""
    max_topk: Count = 1_000
    """Hits per query (422)."""
    max_hits: Count = 100_000
    """Hits per request: queries times topk (422)."""
    max_images: Count = 64
    """Hits of a request that asks for pictures, its queries times topk (422)."""
    default_topk: Count = 3
    """Hits per query if the request gives no topk, as in Search-R1."""
    max_body_bytes: Count = 16 * 2**20
    """Size of a request (413)."""
    timeout_s: Seconds = 60.0
    """Seconds from the complete request to its response, for every ``max_batch`` queries in it (504)."""
    header_timeout_s: Seconds = 10.0
    """Seconds that a client may take for the headers of a request, or to begin its first one (408, or no answer)."""
    body_timeout_s: Seconds = 10.0
    """Seconds that a client may take for the rest of its request (408)."""
    grace_s: Seconds = 10.0
    """Seconds that running requests have left when the service is told to stop."""

    @model_validator(mode="after")
    def _default_is_allowed(self) -> ServiceLimits:
        if self.default_topk > self.max_topk:
            raise ValueError(f"default_topk is {self.default_topk}, more than max_topk, {self.max_topk}")
        return self


class RemoteSettings(RetrieverSettings):
    KEPT_IN_A_PART: ClassVar[frozenset[str]] = frozenset({"timeout_s"})  # of one request over the wire

    kind: Literal["remote"] = "remote"
    url: str
    """The address of a retriever service, `sleuth serve-retriever` or Search-R1's own."""
    images: bool = False
    """Fetch the bytes of passages' pictures, not only their names."""

    @property
    def name(self) -> str:
        return self.url

    def open(self, _progress: Progress, /) -> Retriever:
        from retrieval.service.remote import RemoteRetriever

        return RemoteRetriever(self.url, timeout_s=self.patience_s, images=self.images)
