"""ColBERT encoders: the same vectors and scores in plain sentence-transformers, whoever saved them."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from torch import nn

from retrieval.encoders.config import EncoderKind, ScratchSettings, preset
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.loading import load_encoder, new_encoder, open_trainable_encoder
from retrieval.encoders.scratch import make_backbone
from sleuth.errors import ArtifactError

TEXTS = ["Arden", "a town on the river.", "who makes glass, in Brill? " * 9, "salt & rope"]
SMALL: dict[str, Any] = {"dimensions": 16, "query_max_tokens": 20, "passage_max_tokens": 40}


@pytest.fixture(scope="module", params=["bert", "llama"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("colbert") / request.param
    shape: dict[str, Any] = {"vocabulary": 200, "hidden_size": 32, "layers": 2, "heads": 2, "max_positions": 128}
    make_backbone(path, TEXTS, ScratchSettings(family=request.param, **shape))
    return path


def assert_same(ours: Encoder, theirs: MultiVectorEncoder, atol: float = 1e-5) -> None:
    queries, passages = ours.encode_texts(TEXTS, "query", 2), ours.encode_texts(TEXTS, "passage", 2)
    plain = theirs.encode_query(TEXTS), theirs.encode_document(TEXTS)
    for encoded, expected in zip((queries, passages), plain, strict=True):
        assert encoded.mask is not None
        for values, mask, vectors in zip(encoded.values, encoded.mask, expected, strict=True):
            torch.testing.assert_close(values[mask], vectors, atol=atol, rtol=0)
    torch.testing.assert_close(ours.family.scores(queries, passages), theirs.similarity(*plain), atol=atol, rtol=1e-5)


@pytest.mark.parametrize("towers", ["shared", "separate"])
@pytest.mark.parametrize("expand_to", [0, 12, 20])
def test_what_is_saved_is_the_same_in_plain_sentence_transformers(
    family: Path, towers: str, expand_to: int, tmp_path: Path
) -> None:
    made = new_encoder(preset("colbert", str(family), towers=towers, expand_to=expand_to, **SMALL))
    made.save(tmp_path / "e")
    assert_same(made, MultiVectorEncoder(str(tmp_path / "e")))
    back = load_encoder(tmp_path / "e")
    assert back.fingerprint == made.fingerprint
    assert torch.equal(*(one.encode_texts(TEXTS, "passage").values for one in (made, back)))
    (tmp_path / "e" / "manifest.json").unlink()
    described = load_encoder(tmp_path / "e")
    assert described.settings.decisive[:-1] == made.settings.decisive[:-1]  # of the skipped tokens it knows its own
    assert_same(described, MultiVectorEncoder(str(tmp_path / "e")))


def test_queries_are_filled_up_and_their_tokens_do_not_see_it(family: Path) -> None:
    filled = new_encoder(preset("colbert", str(family), expand_to=20, **SMALL))
    bare = new_encoder(preset("colbert", str(family), expand_to=0, **SMALL))
    seen = new_encoder(preset("colbert", str(family), expand_to=20, attend_to_expansion=True, **SMALL))
    one, other, third = (encoder.encode_texts(TEXTS[:1], "query") for encoder in (filled, bare, seen))
    own = other.values.shape[1]
    assert one.mask is not None
    assert int(one.mask.sum()) == 20 > own
    torch.testing.assert_close(one.values[:, :own], other.values, atol=1e-5, rtol=0)
    if family.name == "bert":  # a decoder's tokens never see what follows
        assert float((third.values[:, :own] - other.values).abs().max()) > 1e-4


def test_punctuation_has_vectors_in_queries_only(family: Path) -> None:
    encoder = new_encoder(preset("colbert", str(family), expand_to=0, passage_prompt="", query_prompt="", **SMALL))
    keeping = new_encoder(
        preset("colbert", str(family), expand_to=0, passage_prompt="", query_prompt="", skipped_tokens=[], **SMALL)
    )
    text = ["a town on the river."]
    for role, fewer in (("query", 0), ("passage", 1)):
        masks = [one.encode_texts(text, role).mask for one in (encoder, keeping)]  # type: ignore[arg-type]
        assert masks[0] is not None and masks[1] is not None
        assert int(masks[1].sum() - masks[0].sum()) == fewer


def test_the_projection_is_drawn_from_the_seed(family: Path) -> None:
    weights = [new_encoder(preset("colbert", str(family), **SMALL), seed=s).model[1].linear.weight for s in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_model_of_the_library_loads_here_and_may_be_changed(family: Path, tmp_path: Path) -> None:
    first = Transformer(
        str(family),
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
    )
    head = Dense(32, 16, bias=False, activation_function=nn.Identity(), module_input_name="token_embeddings")
    first.query_expansion = {"strategy": "fixed", "length": 12}
    mask, norm = (
        MultiVectorMask(skiplist_words=list(string.punctuation)),
        Normalize(module_input_name="token_embeddings"),
    )
    prompts = {"query": "[Q] ", "document": "[D] "}
    MultiVectorEncoder(modules=[first, head, mask, norm], prompts=prompts).save(str(tmp_path / "m"))
    ours = load_encoder(tmp_path / "m")
    assert_same(ours, MultiVectorEncoder(str(tmp_path / "m")))
    wanted = EncoderKind.of(backbone=str(tmp_path / "m"), query_max_tokens=30, dimensions=8, skipped_tokens=["a"])
    changed = open_trainable_encoder(wanted)
    encoded = changed.encode_texts(TEXTS, "query")
    assert encoded.values.shape == (4, 30, 8)
    torch.testing.assert_close(encoded.values.norm(dim=-1), torch.ones(4, 30), atol=1e-5, rtol=0)
    with pytest.raises(ArtifactError, match="has vectors of 16 dimensions, not 32"):
        open_trainable_encoder(EncoderKind.of(backbone=str(tmp_path / "m"), dimensions=32))
    with pytest.raises(ArtifactError, match="was trained with the query_prompt"):
        open_trainable_encoder(EncoderKind.of(backbone=str(tmp_path / "m"), query_prompt="ask: "))


def test_checkpoints_of_stanford_and_pylate_load(family: Path, tmp_path: Path) -> None:
    if family.name != "bert":
        pytest.skip("these are BERTs")
    made = new_encoder(preset("colbert", str(family), expand_to=20, **SMALL))
    stanford = tmp_path / "stanford"
    first = made.model[0]
    first.model.save_pretrained(stanford)
    first.tokenizer.save_pretrained(stanford)
    weights = {f"bert.{name}": w for name, w in load_file(stanford / "model.safetensors").items()}
    weights["linear.weight"] = made.model[1].linear.weight.detach().clone()
    save_file(weights, stanford / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((stanford / "config.json").read_text())
    (stanford / "config.json").write_text(json.dumps(config | {"architectures": ["HF_ColBERT"]}))
    (stanford / "artifact.metadata").write_text(json.dumps({"query_maxlen": 20, "doc_maxlen": 40}))
    ours = load_encoder(stanford)
    assert (ours.settings.query_max_tokens, ours.settings.passage_max_tokens, ours.dimension) == (20, 40, 16)
    assert_same(ours, MultiVectorEncoder(str(stanford)))

    made.save(tmp_path / "pylate")
    (tmp_path / "pylate" / "manifest.json").unlink()
    path = tmp_path / "pylate" / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "ColBERT", "skiplist_words": ["."]}))
    modules = json.loads((tmp_path / "pylate" / "modules.json").read_text())[:2]
    (tmp_path / "pylate" / "modules.json").write_text(json.dumps(modules))
    assert_same(load_encoder(tmp_path / "pylate"), MultiVectorEncoder(str(tmp_path / "pylate")))


def test_an_adapter_is_saved_and_loaded(family: Path, tmp_path: Path) -> None:
    made = new_encoder(preset("colbert", str(family), **SMALL))
    made.model.add_adapter(LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    made.save(tmp_path / "e")
    assert_same(load_encoder(tmp_path / "e"), MultiVectorEncoder(str(tmp_path / "e")))
    assert torch.equal(*(one.encode_texts(TEXTS, "passage").values for one in (made, load_encoder(tmp_path / "e"))))


def test_a_marker_of_the_vocabulary_is_one_token(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\n".join(["[unused0]", "[unused1]", "a", "##r", "##d", "##e", "##n", "river"]))
    shape = ScratchSettings(vocabulary_file=tmp_path / "words.txt", hidden_size=16, layers=1, heads=2)
    make_backbone(tmp_path / "b", [], shape)
    marks = {"query_prompt": "[unused0] ", "passage_prompt": "[unused1] "}
    encoder = new_encoder(preset("colbert", str(tmp_path / "b"), expand_to=0, **marks))
    words = encoder.model.tokenizer.convert_ids_to_tokens(encoder.features(["river"], "query")["input_ids"][0])
    assert words == ["[CLS]", "[unused0]", "river", "[SEP]"]
