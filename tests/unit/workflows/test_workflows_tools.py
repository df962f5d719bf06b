"""Tools meet the retriever: what can open documents gets them, what cannot is refused before the first episode."""

from __future__ import annotations

from pathlib import Path

import pytest

from envs.config import EnvironmentSettings
from retrieval.cache import CachedRetriever
from retrieval.store import PassageStore, StoreWriter
from sleuth.errors import ConfigError
from sleuth.types import Call, Generation, Hit, Passage, Search, Turn
from workflows.config import RunSettings
from workflows.play import _reread
from workflows.wiring import make_tool_box

OPEN = EnvironmentSettings(tools=["search", "open"])
PARTS = [Passage(f"p{n}", title, f"text {n}") for n, title in enumerate(["A", "B", "B"])]


class Found:
    fingerprint = "found"

    def search(self, queries, k):
        return [[] for _ in queries]


def test_open_reads_the_index_behind_the_retriever(tmp_path: Path) -> None:
    with StoreWriter(tmp_path) as writer:
        writer.add(PARTS)
    local = Found()
    local.documents = PassageStore(tmp_path)
    box = make_tool_box(OPEN, CachedRetriever(local))
    assert box is not None
    turn = Turn(Generation((1,), (0.0,), "stop"), "", Search("x"), (Hit(PARTS[2], 1.0, 1),))
    (answer,) = box.call([(Call("open", {"document": "b"}), [turn])])
    assert (answer.text, answer.failed) == ("B (page 1 of 1)\ntext 1\ntext 2", False)


def test_a_retriever_of_passages_alone_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError) as refused:
        make_tool_box(OPEN, CachedRetriever(Found()))
    assert str(refused.value) == (
        "environment.tools has open, but this retriever finds passages only, not whole documents"
        " (search an index of this machine made by sleuth index, or leave open out)"
    )
    assert make_tool_box(EnvironmentSettings(), Found()) is None
    assert make_tool_box(OPEN.model_copy(update={"kind": "direct"}), None) is None


def test_an_evaluation_saved_before_there_were_protocols_is_resumed() -> None:
    now = EnvironmentSettings().model_dump(mode="json")
    before = {name: now[name] for name in now if name not in ("protocol", "tools", "calls")}
    settings = RunSettings.model_validate({"out": "o", "policy": {"model": "m"}})
    assert _reread(settings, {"environment": before, "retriever": None})["environment"] == now
