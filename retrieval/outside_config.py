"""A retriever from another package, named by dotted path."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from retrieval.config import Progress, RetrieverSettings
from sleuth.errors import ConfigError
from sleuth.plugins import make_object
from sleuth.protocols import Retriever


class OutsideSettings(RetrieverSettings):
    """``kind`` is ``package.module:Class``."""

    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class."""

    def open(self, _progress: Progress, /) -> Retriever:
        retriever = make_object(self.kind, "retriever", options=self.options)
        if not isinstance(retriever, Retriever):
            raise ConfigError(f"{self.kind} is no Retriever", "it needs a fingerprint and search(queries, k)")
        return retriever
