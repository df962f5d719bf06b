"""What tests of several packages share."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("sleuth", deadline=None)  # a busy machine is no fault of the code
hypothesis.settings.load_profile("sleuth")

Serving = Callable[..., "contextlib.AbstractContextManager[str]"]
"""``with serving(retriever, limits) as url``: a real retriever service on loopback, in a thread."""


@pytest.fixture(scope="session", autouse=True)
def hears_interrupts() -> Iterator[None]:
    """Also where the tests run as a background job of a shell, which makes them deaf to interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def serving() -> Serving:
    return _serving


@contextlib.contextmanager
def _serving(retriever: Any, limits: Any = None, app: Any = None) -> Iterator[str]:
    import uvicorn

    from retrieval.service.config import ServiceLimits
    from retrieval.service.server import make_app, server_config

    ready = threading.Event()
    application = app or make_app(retriever, limits, on_ready=ready.set)
    if app is not None:
        ready.set()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = server_config(application, limits or ServiceLimits(), log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        assert ready.wait(30)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
