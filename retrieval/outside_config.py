"""A retriever from another package, named by dotted path."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from retrieval.config import Progress, RetrieverSettings
from sleuth.errors import ConfigError
from sleuth.plugins import load_object
from sleuth.protocols import Retriever


class OutsideSettings(RetrieverSettings):
    """``kind`` is ``package.module:Class``."""

    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class."""

    def open(self, _progress: Progress, /) -> Retriever:
        make = load_object(self.kind)
        try:
            retriever = make(**self.options)
        except TypeError as error:
            raise ConfigError(f"retriever {self.kind} does not take these options: {error}") from error
        if not isinstance(retriever, Retriever):
            raise ConfigError(f"{self.kind} is no Retriever", "it needs a fingerprint and search(queries, k)")
        return retriever
