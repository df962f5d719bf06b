"""What commit 959bbc8 saved, 27 settings for every kind of retriever, opens and goes on today."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from retrieval.config import RetrieverSettings
from retrieval.open import open_retriever
from retrieval.training.config import TrainingSettings
from sleuth.errors import ArtifactError, ConfigError
from sleuth.settings import validate
from workflows.config import RunSettings
from workflows.context import StageContext
from workflows.retriever_training import RetrieverRun
from workflows.stages import run_stages

GOLDEN = Path(__file__).parents[1] / "golden" / "retrieval"
NOW: dict[str, Any] = {
    "bm25": {"kind": "bm25", "index": "bm25", "corpus": "corpus.jsonl", "k1": 1.2},
    "path": "bm25",
    "dense": {"index": "dense", "encoder": "encoder"},
    "hybrid": {"kind": "hybrid", "parts": ["bm25", {"index": "dense", "encoder": "encoder"}], "fusion": "sum"},
    "rerank": {"kind": "rerank", "model": "reranker", "inner": "bm25", "depth": 3},
    "remote": "http://127.0.0.1:8000",
}
"""The retrievers of the runs in ``started``, as one writes them."""


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "saved"
    shutil.copytree(GOLDEN, folder)
    (folder / "started").rename(folder / "runs")
    monkeypatch.chdir(folder)
    return folder


def resumed(kind: str, retriever: Any) -> StageContext:
    values = {"out": f"runs/{kind}", "policy": {"model": "encoder"}, "retriever": retriever}
    return run_stages(validate(RunSettings, values, "run.yaml"), until="policy", resume=True, overwrite=False)


@pytest.mark.parametrize("kind", NOW)
def test_a_run_that_was_started_goes_on_with_the_same_retriever(
    kind: str, saved: Path, serving: Callable[..., contextlib.AbstractContextManager[str]]
) -> None:
    with contextlib.ExitStack() as stack:
        retriever = NOW[kind]
        if kind == "remote":
            retriever = stack.enter_context(serving(open_retriever("bm25", cached=False, resilient=False)))
            config = saved / "runs" / kind / "config.yaml"
            config.write_text(config.read_text().replace(f" url: {NOW[kind]}", f" url: {retriever}"))
        opened = resumed(kind, retriever).open_retriever()  # refuses another fingerprint than the run was started with
        assert opened is not None
        assert {hit.passage.id for hit in opened.search(["Dunmorewater salt"], 3)[0]} >= {"p3"}
        resumed(kind, retriever)  # what it saved itself is the same, too


def test_another_setting_of_the_retriever_is_still_refused(saved: Path) -> None:
    with pytest.raises(ArtifactError, match=r"started with retriever\.k1 = 1\.2, not 2\.0"):
        resumed("bm25", {**NOW["bm25"], "k1": 2.0})
    with pytest.raises(ArtifactError, match=r"started with retriever\.index = 'bm25', not 'dense'"):
        resumed("path", NOW["dense"])


def test_a_resumed_run_may_be_given_another_cache(saved: Path) -> None:
    resumed("bm25", {**NOW["bm25"], "cache": 10, "cache_bytes": "1MiB"})


def test_a_setting_of_another_kind_that_was_saved_is_refused(saved: Path) -> None:
    config = saved / "runs" / "bm25" / "config.yaml"
    config.write_text(config.read_text().replace("rrf_k: 60.0", "rrf_k: 10.0"))
    with pytest.raises(ConfigError, match="rrf_k does nothing for a retriever of kind bm25"):
        resumed("bm25", NOW["bm25"])


@pytest.mark.parametrize("path", sorted((GOLDEN / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_saved_config_reads_as_what_it_was(path: Path) -> None:
    model = RetrieverRun if path.stem.startswith("training") else RunSettings
    values = yaml.safe_load(path.read_text())
    settings: Any = validate(model, values, path.name)
    mine, before = (settings.mining, values["mining"]) if model is RetrieverRun else (settings, values)
    retriever, old = mine.retriever, before["retriever"]
    assert isinstance(retriever, RetrieverSettings)
    assert retriever.kind == (old["kind"] or "bm25")
    assert_kept(retriever, old)
    assert validate(model, settings.model_dump(mode="json"), "again") == settings


@pytest.mark.parametrize(
    ("name", "training", "own"),
    [
        ("in_batch", {"preset": "repllama", "batch_size": 4}, {"lora"}),
        (
            "frozen",
            {"train": "query", "against": "all", "index": "runs/dense", "temperature": 0.02},
            {"against", "index"},
        ),
    ],
)
def test_a_saved_training_is_the_same_as_one_that_is_written_today(
    name: str, training: dict[str, Any], own: set[str]
) -> None:
    saved = validate(RetrieverRun, yaml.safe_load((GOLDEN / "configs" / f"training_{name}.yaml").read_text()), name)
    values = {"out": f"runs/{name}", "encoder": {"backbone": "runs/encoder"}, "data": [{"path": "rows.jsonl"}]}
    mining = {"retriever": {"index": "runs/bm25", "corpus": "c.jsonl", "k1": 1.2}}
    written = validate(RetrieverRun, values | {"mining": mining, "training": training}, "run.yaml")
    assert saved == written
    assert type(saved.training).model_fields.keys() - TrainingSettings.model_fields.keys() == own
    assert saved.model_dump(mode="json") == written.model_dump(mode="json")


def assert_kept(retriever: RetrieverSettings, old: dict[str, Any]) -> None:
    """Every setting of its own has the value that was saved, and what was dropped said nothing."""
    now = retriever.model_dump(mode="json")
    for name, value in old.items():
        if name in ("parts", "inner") and value:
            for part, before in zip(retriever.inside, value if name == "parts" else [value], strict=True):
                assert_kept(part, before)
        elif name == "encoder" and value:
            since = {key for key in now[name] if key not in value and now[name][key] is None}
            assert now[name] == {"kind": "dense", **value, **dict.fromkeys(since)}
        elif name in now:
            assert now[name] == value or name == "kind"
        else:
            assert value in (None, [], {}, "rrf", 60.0, 2), name
