"""Open a retriever from settings or from the path of an index, wrapped for use in a rollout."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from retrieval.cache import CachedRetriever
from retrieval.config import Progress, RetrieverSettings
from retrieval.resilient import ResilientRetriever
from sleuth.protocols import Retriever


def open_retriever(
    settings: RetrieverSettings | str | Path,
    *,
    cached: bool = True,
    resilient: bool = True,
    progress: Progress | None = None,
) -> Retriever:
    """The retriever that ``settings`` name; a path is that of an index of any kind, an address
    that of a service.

    ``resilient`` adds timeout, retries and circuit breaker, ``cached`` remembers queries. An index that
    does not exist is made when ``settings.corpus`` is given. Raises ArtifactError or ConfigError.
    """
    chosen = settings if isinstance(settings, RetrieverSettings) else RetrieverSettings.model_validate(settings)
    retriever = chosen.open(progress or (lambda _title: nullcontext()))
    if resilient:
        retriever = ResilientRetriever(
            retriever,
            timeout_s=chosen.patience_s,
            retries=chosen.retries,
            backoff_s=chosen.backoff_s,
            breaker_failures=chosen.breaker_failures,
            breaker_cooldown_s=chosen.breaker_cooldown_s,
        )
    return remembering(retriever, chosen) if cached else retriever


def remembering(retriever: Retriever, settings: RetrieverSettings) -> Retriever:
    """``retriever`` with a cache of the size in ``settings``, if there is to be one."""
    if not settings.cache or settings.cache_bytes == 0:
        return retriever
    return CachedRetriever(retriever, size=settings.cache, max_bytes=settings.cache_bytes)
