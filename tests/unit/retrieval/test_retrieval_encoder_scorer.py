"""Encoders as rerankers: the scores of their index, without one."""

from __future__ import annotations

import json
from pathlib import Path

import families
import pytest

from retrieval.bm25 import build_bm25
from retrieval.config import RetrieverSettings
from retrieval.encoders.encoder import Encoder
from retrieval.open import open_retriever
from retrieval.rerankers.config import ScorerSettings
from retrieval.rerankers.encoder_scorer import EncoderScorer
from sleuth.errors import ConfigError

MAKERS = {"dense": families.dense, "sparse": families.sparse, "multivector": families.multivector}
TEXTS = ["the salt of dunmore", "corvo is a town", "a river", "estray lies on the river and makes salt"]


@pytest.fixture(params=MAKERS)
def encoder(request: pytest.FixtureRequest, masked_lm_folder: Path) -> Encoder:
    return MAKERS[request.param](masked_lm_folder)


@pytest.fixture(scope="module")
def masked_lm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.masked_lm(tmp_path_factory.mktemp("encoder_scorer") / "lm")


def test_scores_are_those_of_each_pair_alone(encoder: Encoder) -> None:
    pairs = [(query, text) for query in ("salt", "a town") for text in TEXTS] + [("salt", TEXTS[0])]
    found = EncoderScorer(encoder, batch_size=3).score(pairs)
    for (query, text), score in zip(pairs, found, strict=True):
        alone = encoder.family.scores(encoder.encode_texts([query], "query"), encoder.encode_texts([text], "passage"))
        assert score == pytest.approx(float(alone), rel=1e-5, abs=1e-6)
    assert EncoderScorer(encoder).score([]) == []


def test_one_line_of_settings_ranks_a_first_stage_again(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save(tmp_path / "encoder")
    rows = [{"_id": str(number), "title": "", "text": text} for number, text in enumerate(TEXTS)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_bm25(tmp_path / "corpus.jsonl", tmp_path / "bm25")
    inner = {"kind": "bm25", "index": str(tmp_path / "bm25")}
    settings = {"kind": "rerank", "model": str(tmp_path / "encoder"), "inner": inner, "depth": 3}
    hits = open_retriever(RetrieverSettings.model_validate(settings), cached=False).search(["salt river"], 3)[0]
    scores = EncoderScorer(encoder).score([("salt river", hit.passage.text) for hit in hits])
    assert [hit.score for hit in hits] == pytest.approx(sorted(scores, reverse=True), rel=1e-5)
    mapping = {**settings, "model": {"kind": encoder.family.kind, "backbone": str(tmp_path / "encoder")}}
    again = open_retriever(RetrieverSettings.model_validate(mapping), cached=False).search(["salt river"], 3)[0]
    assert again == hits


@pytest.mark.parametrize("given", [{"max_tokens": 64}, {"dtype": "float16"}, {"template": "qwen3"}])
def test_what_an_encoder_is_not_told_is_refused(
    masked_lm_folder: Path, given: dict[str, object], tmp_path: Path
) -> None:
    families.dense(masked_lm_folder).save(tmp_path / "encoder")
    with pytest.raises(ConfigError, match=rf"{next(iter(given))} does not apply to a reranker that is an encoder"):
        ScorerSettings.model_validate({"model": str(tmp_path / "encoder"), **given}).open_scorer()
