"""Models made by sentence-transformers, with each of its options, give the same vectors here, and once saved here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Router, Transformer

from retrieval.encoders.config import DenseChoice, ScratchSettings
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.loading import load_encoder
from retrieval.encoders.scratch import make_backbone
from sleuth.errors import ArtifactError

TEXTS = ["Arden", "a town on the river", "  who makes GLASS in Brill? " * 12, "", "salt and rope " * 3]
CHAT = "{% for m in messages %}<u>{{ m['content'] }}</u>{% endfor %}"
PROMPTS = {"query": "ask this: ", "document": "read: "}
Make = Callable[..., SentenceTransformer]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A model of a backbone and a pooling; arguments of the modules, and attributes of the tokenizer."""
    root = tmp_path_factory.mktemp("backbones")
    for name in ("bert", "llama"):
        shape: dict[str, Any] = {"vocabulary": 200, "hidden_size": 32, "heads": 2, "max_positions": 256}
        make_backbone(root / name, TEXTS, ScratchSettings(family=name, **shape))

    def made(
        backbone: str = "bert",
        pooling: dict[str, Any] | None = None,
        tokenizer: dict[str, Any] | None = None,
        transformer: dict[str, Any] | None = None,
        unit: bool = True,
        **options: Any,
    ) -> SentenceTransformer:
        first = Transformer(str(root / backbone), **(transformer or {}))
        for name, value in (tokenizer or {}).items():
            setattr(first.tokenizer, name, value)
        modules = [first, Pooling(32, **({"pooling_mode": "mean"} | (pooling or {}))), *([Normalize()] if unit else [])]
        return SentenceTransformer(modules=modules, **({"prompts": PROMPTS} | options))

    return made


OPTIONS: dict[str, dict[str, Any]] = {
    "mean without prompt": {"pooling": {"include_prompt": False}},
    "cls without prompt": {"pooling": {"include_prompt": False, "pooling_mode": "cls"}},
    "weighted, without prompt": {
        "backbone": "llama",
        "pooling": {"include_prompt": False, "pooling_mode": "weightedmean"},
    },
    "last, padded on the left": {
        "backbone": "llama",
        "pooling": {"pooling_mode": "lasttoken"},
        "tokenizer": {"padding_side": "left"},
    },
    "cut on the left": {"tokenizer": {"truncation_side": "left", "model_max_length": 12}},
    "lower case": {"transformer": {"do_lower_case": True}},
    "longest": {"transformer": {"max_seq_length": 11}},
    "lengths by role": {"transformer": {"query_length": 7, "document_length": 13}},
    "options of the tokenizer's call": {"transformer": {"processing_kwargs": {"text": {"max_length": 10}}}},
    "another name's prompt": {"prompts": {"search": "s: "}, "default_prompt_name": "search"},
    "two poolings": {"pooling": {"pooling_mode": ("mean", "cls")}, "unit": False},
    "cut vectors": {"unit": False, "truncate_dim": 8, "similarity_fn_name": "dot"},
    "a chat template": {"backbone": "llama", "tokenizer": {"chat_template": CHAT}},
}


def assert_same(encoder: Encoder, plain: SentenceTransformer, **passage: Any) -> None:
    for role, theirs in (
        ("query", plain.encode_query(TEXTS)),
        ("passage", plain.encode_document(TEXTS, **passage)),
    ):
        vectors = np.asarray(theirs)
        if encoder.settings.unit_length:
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        np.testing.assert_allclose(encoder.encode(TEXTS, role), vectors, atol=2e-6, rtol=0)


@pytest.mark.parametrize("option", OPTIONS)
def test_the_librarys_options_are_honoured_when_loaded_and_when_saved_again(
    option: str, make: Make, tmp_path: Path
) -> None:
    make(**OPTIONS[option]).save(str(tmp_path / "theirs"))
    encoder = load_encoder(tmp_path / "theirs")
    assert_same(encoder, SentenceTransformer(str(tmp_path / "theirs")))
    encoder.save(tmp_path / "ours")
    assert_same(encoder, SentenceTransformer(str(tmp_path / "ours")))
    assert load_encoder(tmp_path / "ours").fingerprint == encoder.fingerprint


def test_left_padding_with_absolute_positions_is_saved_as_right_padding(make: Make, tmp_path: Path) -> None:
    """On the left a vector would depend on the batch; here it is that of the text alone."""
    make(tokenizer={"padding_side": "left"}).save(str(tmp_path / "theirs"))
    encoder, plain = load_encoder(tmp_path / "theirs"), SentenceTransformer(str(tmp_path / "theirs"))
    alone = np.concatenate([plain.encode_query([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS, "query"), alone, atol=2e-6)
    assert np.abs(plain.encode_query(TEXTS) - alone).max() > 0.01
    encoder.save(tmp_path / "ours")
    assert_same(encoder, SentenceTransformer(str(tmp_path / "ours")))


def test_towers_have_lengths_of_their_own(make: Make, tmp_path: Path) -> None:
    query, passage = make(tokenizer={"model_max_length": 9}), make()
    router = Router.for_query_document(list(query.children()), list(passage.children()))
    SentenceTransformer(modules=[router], prompts=PROMPTS).save(str(tmp_path / "theirs"))
    encoder = load_encoder(tmp_path / "theirs")
    assert (encoder.settings.query_max_tokens, encoder.settings.passage_max_tokens) == (9, 256)
    assert_same(encoder, SentenceTransformer(str(tmp_path / "theirs")))


def test_a_passage_prompt_of_another_name_is_used_and_saved_as_the_documents(make: Make, tmp_path: Path) -> None:
    make(prompts={"query": "q: ", "passage": "p: "}).save(str(tmp_path / "theirs"))
    encoder = load_encoder(tmp_path / "theirs")
    assert_same(encoder, SentenceTransformer(str(tmp_path / "theirs")), prompt_name="passage")
    encoder.save(tmp_path / "ours")
    assert_same(encoder, SentenceTransformer(str(tmp_path / "ours")))


@pytest.mark.parametrize(
    "changes",
    [
        {"query_prompt": "other: ", "include_prompt": False},
        {"query_max_tokens": 9, "passage_max_tokens": 64},
        {"normalise": True},
        {"append_eos": True},
        {"dimensions": 8},
    ],
)
def test_settings_over_a_model_are_saved_with_it(changes: dict[str, Any], make: Make, tmp_path: Path) -> None:
    model = make("llama", unit=False, prompts={}, similarity_fn_name="dot", transformer={"max_seq_length": 32})
    model.tokenizer.backend_tokenizer.post_processor = None  # adds nothing, so that EOS can be added
    model.save(str(tmp_path / "theirs"))
    plain = load_encoder(tmp_path / "theirs")
    encoder = load_encoder(DenseChoice(backbone=str(tmp_path / "theirs"), **changes))
    texts = TEXTS[:3]
    assert encoder.encode(texts, "query").shape != plain.encode(texts, "query").shape or (
        np.abs(encoder.encode(texts, "query") - plain.encode(texts, "query")).max() > 1e-3
    )
    encoder.save(tmp_path / "ours")
    saved = SentenceTransformer(str(tmp_path / "ours"))
    for role, theirs in (("query", saved.encode_query(texts)), ("passage", saved.encode_document(texts))):
        expected = theirs / np.linalg.norm(theirs, axis=1, keepdims=True) if encoder.settings.unit_length else theirs
        np.testing.assert_allclose(encoder.encode(texts, role), expected, atol=2e-6, rtol=0)


def test_settings_that_weights_cannot_have_are_refused(make: Make, tmp_path: Path) -> None:
    make().save(str(tmp_path / "m"))
    with pytest.raises(ArtifactError, match="normalises its vectors"):
        load_encoder(DenseChoice(backbone=str(tmp_path / "m"), normalise=False))
    with pytest.raises(ArtifactError, match="appends EOS itself"):
        load_encoder(DenseChoice(backbone=str(tmp_path / "m"), append_eos=False))
