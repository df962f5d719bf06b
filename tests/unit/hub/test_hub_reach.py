"""Without a network a model that is not cached is given up at once, and a line says why."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from agent.config import PolicySettings
from agent.policies.loading import load_codec, read_config
from hub import reach
from sleuth.errors import PolicyError


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """Addresses to which a connection was tried; none answers, and nobody waits to try again."""
    tried: list[Any] = []

    def refuse(address: Any, **_: Any) -> None:
        tried.append(address)
        raise OSError("no route to host")

    def no_retry(seconds: float) -> None:
        pytest.fail(f"the hub's client waits {seconds} s to try again")

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(_http.time, "sleep", no_retry)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.test")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    reach._answers.cache_clear()
    yield tried
    reach._answers.cache_clear()


def test_a_model_that_is_not_cached_is_given_up_at_once(asked: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        with pytest.raises(PolicyError, match=r"cannot read the configuration of policy\.model 'owner/model'"):
            read_config(PolicySettings(model="owner/model"))
        with pytest.raises(PolicyError, match="cannot load a tokenizer from owner/model"):
            load_codec("owner/model")
    assert asked == [("hub.test", 443)]
    said = "https://hub.test cannot be reached (no route to host): only models in its cache here can be loaded"
    assert [record.getMessage() for record in caplog.records if record.name.startswith("hub")] == [said]
    assert constants.HF_HUB_OFFLINE is False


def test_nobody_asks_for_a_folder_or_where_the_user_is_offline(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with reach.hub_or_cache(str(tmp_path)):
        assert constants.HF_HUB_OFFLINE is False
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with reach.hub_or_cache("owner/model"):
        pass
    assert asked == [] and constants.HF_HUB_OFFLINE is True


def test_a_proxy_is_trusted_to_reach_it(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:3128")
    with reach.hub_or_cache("owner/model"):
        assert constants.HF_HUB_OFFLINE is False
    assert asked == []
