"""Whether the Hugging Face hub can be reached; its client retries every file for half a minute without a network."""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

_PATIENCE_S = 3.0
log = logging.getLogger(__name__)


@contextlib.contextmanager
def hub_or_cache(name: str) -> Iterator[None]:
    """While ``name`` is loaded from the hub: if the hub cannot be reached, only its cache is looked into.

    A line says so, once a process. Nothing changes for a path, nor where HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants

    if Path(name).exists() or constants.HF_HUB_OFFLINE or _answers(constants.ENDPOINT):
        yield
        return
    constants.HF_HUB_OFFLINE = True  # read at every request; what loads a model has no option that reaches all of them
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def reachable() -> bool:
    """Whether the hub can be asked: not where HF_HUB_OFFLINE is set, nor without a network."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)


@functools.cache
def _answers(endpoint: str) -> bool:
    """Whether a connection to ``endpoint`` can be made; a proxy is trusted to make it."""
    address = urllib.parse.urlsplit(endpoint)
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    if address.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return True
    try:
        socket.create_connection((host, port), timeout=_PATIENCE_S).close()
    except OSError as error:
        log.warning("%s cannot be reached (%s): only models in its cache here can be loaded", endpoint, error)
        return False
    return True
