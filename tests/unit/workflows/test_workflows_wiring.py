"""Training questions as the settings ask for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sleuth.errors import DataError
from workflows.config import SourceSettings
from workflows.wiring import load_training_data


@pytest.fixture
def path(tmp_path: Path) -> str:
    rows = [
        {"id": str(i), "question": f"q{i}", "golden_answers": ["a"], "metadata": {"type": kind}}
        for i, kind in enumerate(["bridge", "comparison", "bridge", "comparison", "bridge"])
    ]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_a_source_keeps_its_kinds_then_its_limit(path: str):
    data = load_training_data(
        [SourceSettings(path=path, kinds=["bridge"], limit=2), SourceSettings(path=path, kinds=["comparison"])]
    )
    assert [[q.id for q in source] for source in data.sources] == [["0", "2"], ["1", "3"]]


def test_a_kind_that_is_not_there_is_named_with_those_that_are(path: str):
    with pytest.raises(DataError, match="no question of kind brigde") as caught:
        load_training_data([SourceSettings(path=path, kinds=["brigde"])])
    assert "bridge, comparison" in str(caught.value.hint)
