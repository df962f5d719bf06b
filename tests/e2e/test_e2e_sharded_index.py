"""A corpus encoded on Ray Data: the bytes of one process, whatever is killed on the way."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pieces_of_work import Mistaken, Rows
from typer.testing import CliRunner

from cli.main import make_app
from retrieval.dense.vectors import VECTORS
from retrieval.encoders.config import ScratchSettings, preset
from retrieval.encoders.loading import new_encoder
from retrieval.encoders.scratch import make_backbone
from sleuth.errors import ConfigError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
PASSAGES = 2500
"""Three pieces of `retrieval.encoders.pieces.SHARD` passages at the most."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and an encoder made from nothing."""
    path = tmp_path_factory.mktemp("sharded")
    words = [f"w{n}" for n in range(200)]
    rng = np.random.default_rng(0)
    rows = [
        {"_id": str(n), "title": words[n % 200], "text": " ".join(rng.choice(words, rng.integers(2, 12)))}
        for n in range(PASSAGES)
    ]
    (path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    scratch = ScratchSettings(vocabulary=300, hidden_size=16, layers=1, heads=2, max_positions=64)
    make_backbone(path / "backbone", [row["text"] for row in rows], scratch)
    new_encoder(preset("plain", str(path / "backbone"), passage_max_tokens=32)).save(path / "encoder")
    return path


def index(folder: Path, out: str, *more: str) -> Any:
    words = ["index", str(folder / "corpus.jsonl"), "--out", str(folder / out), "--kind", "dense"]
    return CliRunner().invoke(make_app(), [*words, "--encoder", str(folder / "encoder"), "--threads", "1", *more])


def test_workers_make_the_bytes_of_one_process(folder: Path) -> None:
    assert index(folder, "alone").exit_code == 0
    assert (done := index(folder, "together", "--workers", "2")).exit_code == 0, done.output
    same = {p.name: p.read_bytes() for p in (folder / "alone").iterdir() if p.name != "manifest.json"}
    assert VECTORS in same
    assert same == {p.name: p.read_bytes() for p in (folder / "together").iterdir() if p.name != "manifest.json"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from agent.cluster.config import ClusterSettings
    from agent.cluster.ray_cluster import RayCluster

    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    cluster = RayCluster(ClusterSettings(object_store_mb=100), [], tmp_path_factory.mktemp("ray") / "token", room=2)
    yield
    cluster.close()
    os.environ.clear()
    os.environ.update(before)


def rows(pieces: Sequence[range], build: Any, actors: int = 2) -> list[Any]:
    from agent.cluster.ray_data import work_on_pieces

    return list(work_on_pieces(pieces, build, actors=actors, cpus=1.0, gpus=0.0))


def test_pieces_come_in_order_though_a_worker_was_killed(running: None, tmp_path: Path) -> None:
    pieces = [range(start, min(start + 16, 100)) for start in range(0, 100, 16)]
    made = rows(pieces, Rows(tmp_path / "fatal"))
    assert (tmp_path / "fatal").exists()
    assert [values[:, 0].tolist() for values in made] == [list(map(float, piece)) for piece in pieces]


def test_what_a_worker_finds_wrong_is_one_line(running: None) -> None:
    with pytest.raises(ConfigError, match="another encoder"):
        rows([range(4)], Mistaken())


def test_no_pieces_are_no_rows(running: None, tmp_path: Path) -> None:
    assert rows([], Rows(tmp_path / "fatal")) == []
