"""Whole runs with teachers by the command: stages, resume to the bit, labels kept, errors in one line."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from test_retrieval_training_pipeline import PASSAGES, config

from cli.train_retriever import train_retriever
from retrieval.encoders.loading import load_encoder
from retrieval.training.objective import InBatch
from retrieval.training.row import TrainingRow
from sleuth.errors import ArtifactError, ConfigError, DataError, RetrieverError
from sleuth.layout import RetrieverRunLayout
from sleuth.types import Hit
from workflows.retriever_training import load_retriever_run

NAME = "test_retrieval_training_teachers"
ASKED: list[tuple[str, str]] = []
"""(teacher, query) of every search."""
FAILS: set[str] = set()
"""Queries at which a search fails."""


class Teacher:
    """Finds the passage that has the last word of a query first, then the others in their order, or in the other."""

    def __init__(self, *, backwards: bool = False) -> None:
        self._backwards = backwards
        self.fingerprint = f"teacher {backwards}"

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        if FAILS & set(queries):
            raise RetrieverError("the teacher is gone")
        ASKED.extend((self.fingerprint, query) for query in queries)
        return [self._ranked(query, k) for query in queries]

    def __len__(self) -> int:
        return len(PASSAGES)

    def _ranked(self, query: str, k: int) -> list[Hit]:
        others = PASSAGES[::-1] if self._backwards else PASSAGES
        ranked = sorted(others, key=lambda p: query.split()[-1].rstrip(".") not in p.text)
        return [Hit(p, 1.0 / (place + 1), place + 1) for place, p in enumerate(ranked[:k])]


@pytest.fixture(scope="module", autouse=True)
def module() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, NAME, sys.modules[__name__])
        yield


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    ASKED.clear()
    yield
    FAILS.clear()


def augmented(folder: Path, **changes: Any) -> Path:
    """Two teachers, two stages of few steps; questions of the data and crops of its passages."""
    plain = {"kind": f"{NAME}:Teacher", "retries": 0}
    section = {
        "teachers": [plain, plain | {"options": {"backwards": True}}],
        "corpus": str(folder / "data"),
        "crops": {"count": 5, "words": [2, 3]},
        "positive_ranks": 1,
        "negative_ranks": [2, 4],
        "batch_size": 4,
    }
    training = {"batch_size": 6, "steps": 3, "learning_rate": 5e-3, "log_steps": 1, "save_steps": 1}
    rest: dict[str, Any] = {"mining": None, "index": None, "evaluation": None, "training": training}
    return config(folder, **rest | {"augmentation": section | changes})


def record(run: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "stages" / f"{stage}.json").read_text())
    return found


@dataclass(frozen=True)
class Whole:
    """A finished run: its config, and per stage the rows and the first weights that it began with."""

    config: Path
    run: Path
    rows: list[Sequence[TrainingRow]]
    first_weights: list[torch.Tensor]
    asked: list[tuple[str, str]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, module: None) -> Whole:
    folder = tmp_path_factory.mktemp("teachers")
    done = Whole(augmented(folder, labels=str(folder / "labels")), folder / "run", [], [], [])

    class Spied(InBatch):
        def __init__(self, rows: Sequence[TrainingRow], *more: Any) -> None:
            done.rows.append(rows)
            super().__init__(rows, *more)

        def backward(self, encoder: Any, step: int) -> dict[str, float]:
            if step == 0:
                done.first_weights.append(next(iter(encoder.model.parameters())).detach().clone())
            return super().backward(encoder, step)

    ASKED.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrieval.training.start.InBatch", Spied)
        train_retriever(done.config)
    done.asked.extend(ASKED)
    return done


def test_one_teacher_joins_a_stage_and_a_stage_goes_on_from_the_one_before(whole: Whole) -> None:
    assert [{len(row.labels) for row in rows} for rows in whole.rows] == [{1}, {2}]
    assert [[rows[n].id for n in (0, 1, 11)] for rows in whole.rows] == [["q0", "q1", "q11"]] * 2
    assert {row.id for row in whole.rows[0][12:]} < {f"crop-{p.id}" for p in PASSAGES}
    before = next(iter(load_encoder(RetrieverRunLayout(whole.run).round(1).encoder).model.parameters()))
    first, second = whole.first_weights
    assert torch.equal(before, second) and not torch.equal(first, second)
    queries = {row.query for row in whole.rows[0]}
    assert Counter(whole.asked) == Counter((f"teacher {b}", query) for b in (False, True) for query in queries)
    found = record(whole.run, "label-2")
    assert {name: found[name] for name in ("queries", "searched", "gold_recall", "without_hits")} == {
        "queries": 17,
        "searched": len(queries),
        "gold_recall": 1.0,
        "without_hits": 0,
    }
    assert 0.0 < found["crop_recall"] <= 1.0


def test_a_run_that_failed_and_was_killed_ends_with_the_same_bits_and_searches_nothing_twice(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(whole.config.read_text().replace(str(whole.config.parent / "labels"), str(tmp_path / "labels")))
    FAILS.add("tell of jetty")
    with pytest.raises(RetrieverError, match="the teacher is gone"):
        train_retriever(path, out=tmp_path / "run")
    assert len(ASKED) == 8  # two whole batches
    FAILS.clear()
    backward, steps = InBatch.backward, iter(range(5))

    def dies(self: InBatch, encoder: Any, step: int) -> dict[str, float]:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return backward(self, encoder, step)

    monkeypatch.setattr(InBatch, "backward", dies)
    with pytest.raises(KeyboardInterrupt):
        train_retriever(path, out=tmp_path / "run", resume=True)
    monkeypatch.setattr(InBatch, "backward", backward)
    train_retriever(path, out=tmp_path / "run", resume=True)
    assert Counter(ASKED) == Counter(whole.asked)
    expected = dict(load_encoder(whole.run / "encoder").model.state_dict())
    found = load_encoder(tmp_path / "run" / "encoder").model.state_dict()
    assert all(torch.equal(weight, found[name]) for name, weight in expected.items())
    told = " ".join(capsys.readouterr().err.split())
    assert f"Teacher: 17 queries, {len(ASKED) // 2 - 8} searched now; 1.000 of the golds of queries and" in told
    assert "label-2: queries 17" in told


def test_labels_in_a_shared_folder_serve_other_runs_here_of_crops_alone_with_frozen_passages(
    whole: Whole, tmp_path: Path
) -> None:
    frozen = "training={train: query, against: all, steps: 1, batch_size: 4}"
    train_retriever(whole.config, set_=["data=[]", "augmentation.progressive=false", frozen], out=tmp_path / "run")
    assert not ASKED
    assert [record(tmp_path / "run", f"label-{n}")["searched"] for n in (1, 2)] == [0, 0]
    assert "gold_recall" not in record(tmp_path / "run", "label-2")
    assert record(tmp_path / "run", "train-1")["queries"] == 5
    assert not RetrieverRunLayout(tmp_path / "run").round(2).folder.exists()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["data=[]", "augmentation.crops=null"], "no queries to train on: give data, augmentation.queries or"),
        (["data=[]", "augmentation=null"], r"no queries to train on: give data \("),
        (["rounds=2"], "rounds goes not with augmentation"),
        (["mining={retriever: i}"], "mining goes not with augmentation"),
        (["stages=[{name: one}]", "training={}"], "augmentation has stages of its own"),
        (["kind=reranker", "reranker={backbone: x}"], "kind reranker goes not with augmentation"),
        (["training.distillation={}"], "training.distillation goes not with augmentation"),
        (["augmentation.teachers=[]"], "at least 1 item"),
        (["augmentation.teachrs=[]"], r"did you mean 'augmentation.teachers'|did you mean 'teachers'"),
    ],
)
def test_bad_settings_are_one_clear_line(tmp_path: Path, overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_retriever_run(augmented(tmp_path), overrides)


@pytest.mark.parametrize("later", ["mistyped", "{kind: hybrid, parts: [{kind: bm25, index: mistyped}]}"])
def test_what_a_later_teacher_lacks_is_said_before_any_training(tmp_path: Path, later: str) -> None:
    with pytest.raises(ArtifactError, match="no index at mistyped"):
        train_retriever(augmented(tmp_path), set_=[f"augmentation.teachers=[{{kind: '{NAME}:Teacher'}}, {later}]"])
    assert not ASKED


def test_teachers_over_few_or_other_passages_are_refused(tmp_path: Path) -> None:
    path = augmented(tmp_path)
    with pytest.raises(ConfigError, match=r"Teacher has 12 passages, but augmentation.negative_ranks end at 13"):
        train_retriever(path, set_=["augmentation.negative_ranks=[2, 13]"])
    other = tmp_path / "other.jsonl"
    other.write_text('{"_id": "x", "title": "", "text": "something else"}\n', encoding="utf-8")
    few = [f"augmentation.corpus={other}", "augmentation.crops=null"]
    with pytest.raises(DataError, match=r"finds the passage p\d+, which .*other.jsonl lacks"):
        train_retriever(path, set_=few, out=tmp_path / "two")
