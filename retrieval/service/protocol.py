"""The HTTP protocol of the service: uvicorn's, which also ends connections whose request never begins.

uvicorn closes a connection that is idle after an answer, but waits for ever for the rest of a request's headers, or
for the first request of a new connection.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def timed_protocol(header_timeout_s: float, plain: Any = AutoHTTPProtocol) -> type[asyncio.Protocol]:
    """``plain``, with ``header_timeout_s`` seconds for a request's headers: 408 after that, and the end.

    ``plain`` is uvicorn's protocol, of httptools or h11. Both hold the latest request as ``cycle``, which they make
    when its headers are complete.
    """

    class Timed(plain):  # type: ignore[misc]
        _headers_due: asyncio.TimerHandle | None = None
        _begun = False

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._expect_headers()

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            self._begun = True
            super().data_received(data)
            if self.cycle is not before:
                self._stop()
            elif self._headers_due is None and (before is None or before.response_complete):
                self._expect_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _expect_headers(self) -> None:
            self._headers_due = self.loop.call_later(header_timeout_s, self._give_up)

        def _stop(self) -> None:
            if self._headers_due is not None:
                self._headers_due.cancel()
                self._headers_due = None

        def _give_up(self) -> None:
            if not self.transport.is_closing():
                if self._begun:
                    self.transport.write(_LATE)
                self.transport.close()

    return Timed
