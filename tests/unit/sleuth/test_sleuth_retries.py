"""How long a server is left alone before it is asked again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

import sleuth.retries
from sleuth.retries import pause, wished_pause


def test_a_server_says_in_seconds_or_by_a_date_when_to_come_again() -> None:
    assert wished_pause({}) == 0.0
    assert wished_pause({"Retry-After": "12"}) == 12.0
    assert wished_pause({"Retry-After": "86400"}) == 60.0
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < wished_pause({"Retry-After": soon}) <= 30
    for nothing in ("soon", "-3", "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00 -0000"):
        assert wished_pause({"Retry-After": nothing}) == 0.0


def test_a_pause_is_at_least_what_the_server_wishes(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(sleuth.retries.time, "sleep", waited.append)
    pause(0)
    pause(0, 5.0)
    assert 0.125 <= waited[0] <= 0.25 and waited[1] == 5.0
