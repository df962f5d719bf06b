"""A cross-encoder of sentence-transformers as the reranker's model, from its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retrieval.config import RetrieverSettings
from retrieval.open import open_retriever
from retrieval.rerankers.scorer import CrossEncoderScorer
from sleuth.errors import ArtifactError, ConfigError

WORDS = [
    *("who", "makes", "glass", "rope", "salt", "paper", "town", "lies", "on", "the", "river", "and"),
    *("arden", "brill", "corvo", "dunmore", "estray", "a", "b", "c", "d", "e"),
]


def make(folder: Path, labels: int = 1, seed: int = 0) -> Path:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=labels,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("ce") / "model")


PAIRS = [
    ("who makes salt", "dunmore lies on the river and makes salt"),
    ("a", "b"),
    ("who makes glass", "arden " * 20),
    ("\ud83d", "c \ud83d"),
]


def test_scores_are_the_logits_whatever_the_batch(model: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    plain = AutoModelForSequenceClassification.from_pretrained(model).eval()
    expected = []
    for query, text in PAIRS[:3]:
        with torch.no_grad():
            expected.append(plain(**tokenizer(query, text, return_tensors="pt", truncation=True)).logits.item())
    for batch_size in (1, 2, 32):
        scores = CrossEncoderScorer(model, batch_size=batch_size).score(PAIRS)
        assert scores[:3] == pytest.approx(expected, abs=1e-5)
        assert len(scores) == len(PAIRS)


def test_the_fingerprint_is_that_of_the_weights(model: Path, tmp_path: Path) -> None:
    same = CrossEncoderScorer(model).fingerprint
    assert CrossEncoderScorer(model).fingerprint == same
    assert CrossEncoderScorer(make(tmp_path / "other", seed=1)).fingerprint != same
    assert CrossEncoderScorer(model, max_tokens=16).fingerprint != same


def test_named_in_settings(model: Path, index: Path) -> None:
    settings = RetrieverSettings.model_validate(
        {"kind": "rerank", "model": str(model), "inner": {"kind": "hybrid", "parts": [index, index]}, "depth": 4}
    )
    retriever = open_retriever(settings)
    queries = ["the river", "", "who makes salt"]
    found = retriever.search(queries, 3)
    inner = open_retriever(settings.inner).search(queries, 4)  # type: ignore[arg-type]
    for hits, before in zip(found, inner, strict=True):
        assert {hit.passage.id for hit in hits} <= {hit.passage.id for hit in before}
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_what_is_no_reranker_is_one_clear_line(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is not a cross-encoder: it has no config\.json"):
        CrossEncoderScorer(tmp_path)
    with pytest.raises(ConfigError, match="has 3 labels"):
        CrossEncoderScorer(make(tmp_path / "three", labels=3))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"model_type": "no such type"}))
    with pytest.raises(ArtifactError, match="cannot load a cross-encoder from") as caught:
        CrossEncoderScorer(broken)
    assert "\n" not in str(caught.value)


def test_a_model_without_a_trained_head_is_refused(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer, BertConfig, BertModel

    BertModel(BertConfig.from_pretrained(model)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="is no cross-encoder: its weights are of BertModel, without a head"):
        CrossEncoderScorer(tmp_path)
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_a_causal_reranker_has_its_head_in_its_words(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.modules import LogitScore
    from sentence_transformers.sentence_transformer.modules import Transformer
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    AutoTokenizer.from_pretrained(make(tmp_path / "words")).save_pretrained(tmp_path / "causal")
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, pad_token_id=0, **shape)).save_pretrained(tmp_path / "causal")
    first = Transformer(str(tmp_path / "causal"), transformer_task="text-generation")
    CrossEncoder(modules=[first, LogitScore(true_token_id=7, false_token_id=8)]).save_pretrained(str(tmp_path / "ce"))
    assert len(CrossEncoderScorer(tmp_path / "ce").score(PAIRS[:2])) == 2
