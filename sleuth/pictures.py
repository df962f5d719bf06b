"""Pictures among tokens and queries: where they stand, and how a retriever is asked with texts and pictures at once."""

from __future__ import annotations

from collections.abc import Sequence

from sleuth.errors import ConfigError
from sleuth.protocols import Retriever, SearchesImages
from sleuth.types import Hit, Image

Query = str | Image
Placed = tuple[int, Image]
"""A picture that tokens show, and the place of the first of them."""


def takes_images(retriever: Retriever) -> bool:
    """Whether ``retriever`` takes pictures as queries, as far as it says before it is asked.

    One with the method says no by its attribute ``takes_images``: it wraps a retriever, or has a model, of texts.
    """
    return isinstance(retriever, SearchesImages) and bool(getattr(retriever, "takes_images", True))


def search_images(retriever: Retriever, images: Sequence[Image], k: int) -> list[list[Hit]]:
    """The hits of each picture. Raises ConfigError if ``retriever`` takes none."""
    if not isinstance(retriever, SearchesImages):
        raise ConfigError("this retriever reads no pictures of queries", "ask in words")
    return retriever.search_images(images, k)


def search_mixed(retriever: Retriever, queries: Sequence[Query], k: int) -> list[list[Hit]]:
    """The hits of each of ``queries``, in order: one search for the texts, another for the pictures."""
    texts = [query for query in queries if isinstance(query, str)]
    images = [query for query in queries if not isinstance(query, str)]
    if not images:
        return retriever.search(texts, k)
    pictured = iter(search_images(retriever, images, k))  # first, as not every retriever takes them
    worded = iter(retriever.search(texts, k) if texts else [])
    return [next(worded if isinstance(query, str) else pictured) for query in queries]
