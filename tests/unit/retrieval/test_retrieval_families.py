"""The loop knows no family: dense, late interaction and sparse encoders go through all of it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, Exact, flops, margin_mse, masked_lm, rows
from sentence_transformers.multi_vector_encoder.losses import CachedMultiVectorMultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from sentence_transformers.sparse_encoder.losses import CachedSpladeLoss, SparseMultipleNegativesRankingLoss
from torch import Tensor

from retrieval.encoders.encoder import Encoder, separate_towers
from retrieval.passages import passage_text
from retrieval.training.config import TrainingSettings
from retrieval.training.dev import DevSet, means
from retrieval.training.frozen import freeze
from retrieval.training.mining import mine
from retrieval.training.mining_config import FilterSettings
from retrieval.training.objective import AgainstTable, InBatch, Objective, Terms
from retrieval.training.row import passages_of
from retrieval.training.terms import terms_of
from retrieval.training.trainer import Watch, freeze_passages, train, trainable
from sleuth.sinks import JsonlSink


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return masked_lm(tmp_path_factory.mktemp("families") / "still")


@pytest.fixture(scope="module")
def dropping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return masked_lm(tmp_path_factory.mktemp("families") / "dropping", dropout=0.1)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def settings(**changes: Any) -> TrainingSettings:
    basic = {"batch_size": 6, "hard_negatives": 1, "micro_batch": 2, "temperature": 0.1, "learning_rate": 5e-3}
    return TrainingSettings.model_validate(basic | {"log_steps": 1} | changes)


def gradients(encoder: Encoder) -> dict[str, Tensor]:
    found = {name: w.grad.clone() for name, w in trainable(encoder).items() if w.grad is not None}
    encoder.model.zero_grad()
    return found


def step_of(encoder: Encoder, chosen: TrainingSettings, terms: Terms | None = None) -> tuple[float, dict[str, Tensor]]:
    encoder.model.train().double()  # in float32 the bounds would depend on how a processor rounds
    figures = InBatch(rows(), chosen, 0, terms).backward(encoder, 1)
    return figures["loss"] + sum(figures.get(f"flops_{role}", 0.0) for role in ("query", "passage")), gradients(encoder)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    """Each gradient within ``relative`` of its own size; some are 0 but for rounding (a key's bias does nothing)."""
    assert found.keys() == expected.keys()
    largest = max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        size = float(gradient.norm())
        if size < 1e-6 * largest:
            assert float(found[name].norm()) < 1e-6 * largest, name
        else:
            assert float((found[name] - gradient).norm()) <= relative * size, name


def librarys(name: str, encoder: Encoder) -> Any:
    model, scale = encoder.model, {"scale": 10.0}
    if name == "multivector":
        return CachedMultiVectorMultipleNegativesRankingLoss(model, mini_batch_size=3, **scale)
    if name == "dense":
        return CachedMultipleNegativesRankingLoss(model, mini_batch_size=3, **scale)
    weights = {"query_regularizer_weight": 0.05, "document_regularizer_weight": 0.03}
    return CachedSpladeLoss(model, SparseMultipleNegativesRankingLoss(model, **scale), mini_batch_size=3, **weights)


def test_loss_and_gradients_are_those_of_the_librarys_cached_loss(family: str, folder: Path) -> None:
    """No passage stands twice, so nothing is masked: the same tokens without dropout; in float64,
    but for the library's MaxSim, which is of single precision."""
    encoder = FAMILIES[family](folder)
    chosen = settings(steps=3, regulariser={"query": 0.05, "passage": 0.03} if family == "sparse" else None)
    loss, found = step_of(encoder, chosen, terms_of(chosen, encoder))
    batch = InBatch(rows(), settings(), 0).batch(1)
    count = len(batch.queries)
    assert not batch.targets.masked.any()
    texts = [passage_text(p) for p in batch.passages]
    columns = [encoder.features(batch.queries, "query")]
    columns += [encoder.features(part, "passage") for part in (texts[:count], texts[count:])]
    theirs = librarys(family, encoder)(columns, torch.empty(0))
    theirs = sum(theirs.values()) if isinstance(theirs, dict) else theirs
    theirs.backward()
    assert loss == pytest.approx(float(theirs.detach()), rel=1e-6)
    assert_close(found, gradients(encoder), 1e-5 if family == "multivector" else 1e-7)


def test_chunks_of_any_size_are_one_pass(family: str, folder: Path) -> None:
    """Also with terms, and where chunks are padded to other lengths than the batch; in float64."""
    encoder = FAMILIES[family](folder)
    whole, expected = step_of(encoder, settings(micro_batch=None), flops)
    for size in (1, 4):
        loss, found = step_of(encoder, settings(micro_batch=size), flops)
        assert loss == pytest.approx(whole, rel=1e-9)
        assert_close(found, expected, 1e-9)


class Killed(Exception):  # noqa: N818
    pass


def test_a_family_is_trained_watched_killed_and_resumed(family: str, dropping: Path, tmp_path: Path) -> None:
    """With dropout and gradient caching; the resumed weights are those of a run never broken, to the bit."""
    devset, chosen = DevSet(rows(), passages_of(rows())), settings(steps=24, save_steps=5)
    watch = Watch(lambda encoder, _: means(devset.per_query(encoder, 1)), "ndcg10", 8)

    def run(out: str, objective: Objective, resume: bool = False) -> Encoder:
        encoder = FAMILIES[family](dropping)
        sink = JsonlSink(tmp_path / f"{out}.jsonl")
        train(encoder, objective, chosen, tmp_path / out, seed=0, sink=sink, watch=watch, resume=resume)
        return encoder

    class DiesAt12(InBatch):
        def backward(self, encoder: Encoder, step: int) -> dict[str, float]:
            if step == 12:
                raise Killed
            return super().backward(encoder, step)

    whole = run("whole", InBatch(rows(), chosen, 0))
    with pytest.raises(Killed):
        run("broken", DiesAt12(rows(), chosen, 0))
    torch.manual_seed(99)
    resumed = run("broken", InBatch(rows(), chosen, 0), resume=True)
    for name, weight in whole.model.state_dict().items():
        if ".pooler." not in name:
            assert torch.equal(weight, resumed.model.state_dict()[name]), name
    history = json.loads((tmp_path / "whole" / "checkpoint-24" / "state.json").read_text())["history"]
    assert max(row["ndcg10"] for row in history[1:]) > history[0]["ndcg10"]
    retriever = Exact(whole, devset.passages)
    hits = retriever.search([row.query for row in devset.rows], 1)
    recall = np.mean([hit[0].passage in row.positives for hit, row in zip(hits, devset.rows, strict=True)])
    assert means(devset.per_query(whole, 1))["recall"] == pytest.approx(recall)


def test_pieces_are_the_whole_and_negatives_are_mined_from_them(family: str, folder: Path) -> None:
    encoder, passages = FAMILIES[family](folder), passages_of(rows())
    asked = encoder.encode_texts([row.query for row in rows()], "query")
    whole = encoder.encode_texts([passage_text(p) for p in passages], "passage")
    order = encoder.family.scores(asked, whole).argsort(dim=1, descending=True, stable=True)[:, :7]
    retriever = Exact(encoder, passages)
    found = retriever.search([row.query for row in rows()], 7)
    for hits, places in zip(found, order.tolist(), strict=True):
        assert [hit.passage for hit in hits] == [passages[place] for place in places]
    mined, report = mine(rows(), retriever, FilterSettings(negatives=3, last_rank=7), keep_given=False)
    assert report.kept == 3 * len(mined)
    assert all(len(row.negatives) == 3 and not set(row.negatives) & set(row.positives) for row in mined)
    sent = pickle.loads(pickle.dumps(retriever.pieces[0]))
    assert torch.equal(sent.values, retriever.pieces[0].values)
    assert encoder.encode_texts([], "passage").values.shape[0] == 0


def test_a_query_tower_learns_against_frozen_passages(family: str, folder: Path, tmp_path: Path) -> None:
    encoder = separate_towers(FAMILIES[family](folder))
    freeze_passages(encoder)
    table = freeze(encoder, passages_of(rows()), None, lambda _done, _total: None)
    devset, mark = DevSet(rows(), table.passages), encoder.tower_fingerprint("passage")
    before = means(devset.per_query(encoder, 1, table.encoded))["ndcg10"]
    chosen = settings(train="query", against="all", steps=30)
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    train(encoder, AgainstTable(rows(), table, chosen, 0), chosen, tmp_path / "c", seed=0, sink=sink)
    assert encoder.tower_fingerprint("passage") == mark
    assert means(devset.per_query(encoder, 1, table.encoded))["ndcg10"] > before
    again = freeze(encoder, passages_of(rows())[:5], table, lambda _done, _total: None)
    assert torch.equal(again.encoded.values, table.encoded.values)


@pytest.mark.parametrize("name", ["multivector", "sparse"])
def test_scores_are_drawn_towards_a_teachers(name: str, folder: Path, tmp_path: Path) -> None:
    def distance(terms: Terms | None) -> float:
        encoder, chosen = FAMILIES[name](folder), settings(steps=15, learning_rate=1e-3)
        sink = JsonlSink(tmp_path / "m.jsonl")
        train(encoder, InBatch(rows(), chosen, 0, terms), chosen, tmp_path / "c", seed=0, sink=sink)
        encoder.model.train()
        return InBatch(rows(), chosen, 0, margin_mse).backward(encoder, 0)["margin_mse"]

    assert distance(margin_mse) < 0.8 * distance(None)
