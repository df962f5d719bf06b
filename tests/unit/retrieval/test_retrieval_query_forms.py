"""The query form: saved with an encoder, part of fingerprints, and the same for rows, encoder and index."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from retrieval.combine.hybrid import HybridRetriever
from retrieval.combine.rerank import RerankRetriever
from retrieval.dense.retriever import build_dense, open_dense
from retrieval.encoders.config import EncoderKind
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.loading import open_encoder
from retrieval.service.remote import RemoteRetriever
from retrieval.training.config import SourceSettings, TrainingSettings
from retrieval.training.row import TrainingRow
from retrieval.training.rows import load_rows, write_rows
from retrieval.training.sampling import BatchSampler
from retrieval.training.start import Material, start
from sleuth.errors import ConfigError, DataError
from sleuth.query_forms import form_of
from sleuth.types import Passage

ROWS = [
    TrainingRow(f"r{i}", f"who {i}? | why", (Passage(f"p{i}", "", f"text {i}"),), weight=w, query_form="question_query")
    for i, w in enumerate((1.0, 3.0))
]


@pytest.fixture(scope="module")
def formed(encoder_folder: Path) -> Encoder:
    chosen = EncoderKind.of(kind="dense", backbone=str(encoder_folder), query_form="question_query")
    encoder = open_encoder(chosen)
    assert isinstance(encoder, Encoder)
    return encoder


def test_the_form_is_saved_with_the_weights_and_stands_in_the_manifest_of_the_index(formed, corpus, tmp_path):
    formed.save(tmp_path / "encoder")
    again = open_encoder(str(tmp_path / "encoder"))
    assert again.settings.query_form == "question_query"
    build_dense(corpus, tmp_path / "index", again)
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert manifest["encoder"]["settings"]["query_form"] == "question_query"
    assert form_of(open_dense(tmp_path / "index", again)) == "question_query"


def test_another_form_is_another_query_tower_over_the_same_passages(formed, encoder_folder, corpus, tmp_path):
    plain = open_encoder(str(encoder_folder))
    assert plain.fingerprint != formed.fingerprint
    assert plain.tower_fingerprint("passage") == formed.tower_fingerprint("passage")
    build_dense(corpus, tmp_path / "index", plain)
    retrievers = [open_dense(tmp_path / "index", encoder) for encoder in (plain, formed)]
    assert [form_of(one) for one in retrievers] == ["query", "question_query"]
    assert retrievers[0].fingerprint != retrievers[1].fingerprint


def test_a_reranked_part_that_reads_what_it_is_given_leaves_the_form_of_a_hybrid_to_the_others():
    words, asked = SimpleNamespace(), SimpleNamespace(query_form="question_query")
    assert not hasattr(RerankRetriever(words, SimpleNamespace(), depth=5), "query_form")
    parts = [RerankRetriever(words, SimpleNamespace(), depth=5), asked]
    assert form_of(HybridRetriever(parts)) == "question_query"
    with pytest.raises(ConfigError, match="different forms"):
        form_of(HybridRetriever([SimpleNamespace(query_form="query"), asked]))


def test_a_service_says_the_form_of_its_retriever(serving, formed, corpus, tmp_path):
    build_dense(corpus, tmp_path / "index", formed)
    with serving(open_dense(tmp_path / "index", formed)) as url:
        assert form_of(RemoteRetriever(url)) == "question_query"


def test_rows_keep_their_form_and_weight(tmp_path):
    write_rows(ROWS, tmp_path / "rows.jsonl")
    read = load_rows([SourceSettings(path=str(tmp_path / "rows.jsonl"))])
    assert [(row.weight, row.query_form) for row in read] == [(1.0, "question_query"), (3.0, "question_query")]


@pytest.mark.parametrize("weight", [0, -1, "much", True, float("nan")])
def test_a_weight_that_is_none_is_refused(tmp_path, weight):
    write_rows(ROWS[:1], tmp_path / "rows.jsonl")
    row = json.loads((tmp_path / "rows.jsonl").read_text()) | {"weight": weight}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match="line 1: 'weight' is not a finite number above 0"):
        load_rows([SourceSettings(path=str(tmp_path / "rows.jsonl"))])


def test_weights_are_relative_to_the_mean_row():
    batch = BatchSampler(ROWS, 2, 0, seed=0).batch(0)
    assert dict(zip(batch.queries, batch.weights, strict=True)) == {"who 0? | why": 0.5, "who 1? | why": 1.5}


def test_an_encoder_refuses_rows_of_another_form(formed, encoder_folder):
    settings = TrainingSettings.of(batch_size=2, steps=1)
    counting = lambda _title: pytest.fail("nothing is counted")
    start(settings, Material(formed, ROWS, (), 0, counting))
    with pytest.raises(ConfigError, match="in the form question_query, and the encoder reads the form query"):
        start(settings, Material(open_encoder(str(encoder_folder)), ROWS, (), 0, counting))
