"""Decoders made to read in both directions, and LLM2Vec's stages: each objective against a plain reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer
from test_retrieval_training_pipeline import beir
from test_retrieval_training_run import backbone, rows
from torch.nn import functional
from transformers import AutoConfig, AutoModel

from cli.train_retriever import train_retriever
from hub.config import EncoderLoraSettings
from retrieval.encoders.attention import is_bidirectional, make_bidirectional
from retrieval.encoders.config import preset
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.loading import load_encoder, new_encoder
from retrieval.training.config import TrainingSettings
from retrieval.training.start import Material, start
from retrieval.training.trainer import add_adapter, merge_adapters, trainable
from retrieval.training.unsupervised import Mntp, Simcse
from sleuth.errors import ArtifactError, ConfigError
from workflows.retriever_training import load_retriever_run

TEXTS = ["tell of amber", "This is about birch.", "north", "pearl and pearl"]
SMALL: dict[str, Any] = {"query_max_tokens": 24, "passage_max_tokens": 24}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return backbone(tmp_path_factory.mktemp("llama") / "b", "llama")


def both_ways(folder: Path, **changes: Any) -> Encoder:
    return new_encoder(preset("llm2vec", str(folder), **(SMALL | {"query_prompt": "ask: "} | changes)))


def readied(encoder: Encoder, **values: Any) -> Any:
    basic = {"batch_size": 6, "learning_rate": 1e-3, "steps": 4}
    settings = TrainingSettings.model_validate(basic | values)

    def silent(_title: str) -> Any:
        raise AssertionError("nothing is counted")

    return start(settings, Material(encoder, rows(), [], 0, silent))[1]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "smollm3"])
def test_decoders_look_ahead_and_their_configuration_says_so(family: str, tmp_path: Path) -> None:
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    keys = {"vocab_size": 60, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 2}
    model = AutoModel.from_config(AutoConfig.for_model(family, **size, **keys))
    make_bidirectional(model, family)
    model.save_pretrained(tmp_path)
    back = AutoModel.from_pretrained(tmp_path).eval()
    assert is_bidirectional(back.config)
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    with torch.no_grad():
        states = back(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
    assert not torch.allclose(*states, atol=1e-6)


def test_architectures_that_stay_causal_are_refused() -> None:
    model = AutoModel.from_config(
        AutoConfig.for_model("mamba", vocab_size=60, hidden_size=16, num_hidden_layers=1, state_size=4)
    )
    with pytest.raises(ArtifactError, match="m is a mamba, whose attention stays causal"):
        make_bidirectional(model, "m")


def test_what_is_saved_reads_both_ways_in_plain_sentence_transformers(llama: Path, tmp_path: Path) -> None:
    causal, encoder = both_ways(llama, attention="own"), both_ways(llama)
    assert np.abs(causal.encode(TEXTS, "query") - encoder.encode(TEXTS, "query")).max() > 1e-3
    encoder.save(tmp_path / "e")
    plain = SentenceTransformer(str(tmp_path / "e"))
    for role, theirs in (("query", plain.encode_query(TEXTS)), ("passage", plain.encode_document(TEXTS))):
        np.testing.assert_allclose(encoder.encode(TEXTS, role), theirs, atol=2e-6)
    alone = np.concatenate([encoder.encode([text], "query") for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS, "query"), alone, atol=2e-6)
    back = load_encoder(tmp_path / "e")
    assert (back.settings.attention, back.fingerprint) == ("bidirectional", encoder.fingerprint)
    (tmp_path / "e" / "manifest.json").unlink()  # as others would publish it
    assert load_encoder(tmp_path / "e").settings.attention == "bidirectional"
    assert causal.tower_fingerprint("passage") != encoder.tower_fingerprint("passage")


def reference(encoder: Encoder, objective: Mntp, texts: list[str]) -> torch.Tensor:
    """One text after the other, in plain transformers: token i from the state of token i - 1."""
    first = encoder.model[0]
    features = encoder.features(texts, "passage")
    chosen = objective.masked(encoder, features, 0)
    mask = first.tokenizer.mask_token_id
    head, losses = first.model.get_input_embeddings().weight, []
    for ids, attended, places in zip(features["input_ids"], features["attention_mask"], chosen, strict=True):
        length = int(attended.sum())
        hidden = torch.where(places, mask, ids)[None, :length]
        states = first.model(input_ids=hidden).last_hidden_state[0]
        for place in places.nonzero().flatten().tolist():
            assert 0 < place < length
            assert int(ids[place]) not in first.tokenizer.all_special_ids
            losses.append(functional.cross_entropy(states[place - 1] @ head.T, ids[place]))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_masked_next_token_prediction_is_that_of_a_plain_reference(llama: Path, micro_batch: int | None) -> None:
    encoder = both_ways(llama)
    objective = readied(encoder, kind="mntp", head="tied", mask_share=0.5, micro_batch=micro_batch)
    figures = objective.backward(encoder, 0)
    found = {name: weight.grad.clone() for name, weight in trainable(encoder).items() if weight.grad is not None}
    encoder.model.zero_grad()
    expected = reference(encoder, objective, objective._texts.batch(0))
    expected.backward()
    assert figures["loss"] == pytest.approx(float(expected.detach()), rel=1e-5)
    assert found.keys() == {name for name, weight in trainable(encoder).items() if weight.grad is not None}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, trainable(encoder)[name].grad, rtol=1e-3, atol=1e-6)


def test_simcse_is_cross_entropy_of_two_dropouts(llama: Path) -> None:
    encoder = both_ways(llama)
    objective = readied(encoder, kind="simcse", dropout=0.3, temperature=0.1)
    assert isinstance(objective, Simcse)
    texts = objective._texts.batch(0)
    encoder.model.train()
    torch.manual_seed(5)
    figures = objective.backward(encoder, 0)
    encoder.model.zero_grad()
    torch.manual_seed(5)
    features = encoder.features(texts, "passage")
    once, again = (encoder.embed(features, "passage").values for _ in range(2))
    assert not torch.allclose(once, again, atol=1e-3)
    expected = functional.cross_entropy(once @ again.T / 0.1, torch.arange(len(texts)))
    assert figures["loss"] == pytest.approx(float(expected.detach()), rel=1e-5)
    expected.backward()
    plain = {name: weight.grad.clone() for name, weight in trainable(encoder).items() if weight.grad is not None}
    encoder.model.zero_grad()
    torch.manual_seed(5)
    objective.backward(encoder, 0)
    for name, gradient in plain.items():
        torch.testing.assert_close(trainable(encoder)[name].grad, gradient, rtol=1e-3, atol=1e-6)


def test_a_merged_adapter_gives_the_same_vectors(llama: Path, tmp_path: Path) -> None:
    encoder = both_ways(llama)
    before = encoder.encode(TEXTS, "passage")
    add_adapter(encoder, EncoderLoraSettings(r=4, dropout=0.0))
    with torch.no_grad():
        for name, weight in encoder.model.named_parameters():
            if "lora_" in name:
                weight.normal_()
    adapted = encoder.encode(TEXTS, "passage")
    merge_adapters(encoder)
    assert np.abs(adapted - before).max() > 1e-3
    np.testing.assert_allclose(encoder.encode(TEXTS, "passage"), adapted, atol=1e-5)
    encoder.save(tmp_path / "e")
    np.testing.assert_allclose(load_encoder(tmp_path / "e").encode(TEXTS, "passage"), adapted, atol=1e-5)
    assert all(weight.requires_grad for weight in trainable(encoder).values())


def staged(folder: Path, **changes: Any) -> Path:
    data = str(beir(folder / "data"))
    common = {"batch_size": 6, "log_steps": 1, "save_steps": 2, "learning_rate": 1e-3}
    lora = {"lora": {"r": 2, "dropout": 0.1}}
    values = {
        "out": str(folder / "run"),
        "encoder": {
            "preset": "llm2vec",
            "scratch": {"family": "llama", "vocabulary": 120, "hidden_size": 32, "layers": 1, "heads": 2},
            "scratch_corpus": data,
            "settings": {"query_max_tokens": 24, "passage_max_tokens": 24, "query_prompt": "ask: "},
        },
        "data": [{"path": data}],
        "stages": [
            {"name": "mntp", "training": {"kind": "mntp", "head": "tied", "steps": 3, **common, **lora}},
            {"name": "simcse", "training": {"kind": "simcse", "steps": 4, "micro_batch": 2, **common, **lora}},
            {"name": "supervised", "training": {"steps": 2, "hard_negatives": 0, **common}},
        ],
        "evaluation": {"path": data, "split": "train", "every": 20, "k": 1},
        "index": {"path": "{out}/index", "corpus": data, "evaluate": {"path": data, "split": "train", "k": 1}},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values | changes), encoding="utf-8")
    return path


class Killed(Exception):  # noqa: N818
    pass


def test_stages_follow_one_another_and_a_killed_run_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = staged(tmp_path)
    train_retriever(path, out=tmp_path / "whole")
    whole = load_encoder(tmp_path / "whole" / "encoder")
    assert whole.settings.attention == "bidirectional"
    assert not (tmp_path / "whole" / "stage-2" / "encoder" / "adapter_config.json").exists()
    assert json.loads((tmp_path / "whole" / "stages" / "index.json").read_text())["queries"] == 12
    moved = [load_encoder(tmp_path / "whole" / f"stage-{n}" / "encoder").fingerprint for n in (1, 2, 3)]
    assert len({*moved}) == 3
    assert moved[2] == whole.fingerprint
    kept = Simcse.backward

    def dying(self: Simcse, encoder: Encoder, step: int) -> dict[str, float]:
        if step == 3:
            raise Killed
        return kept(self, encoder, step)

    monkeypatch.setattr(Simcse, "backward", dying)
    with pytest.raises(Killed):
        train_retriever(path, out=tmp_path / "broken")
    monkeypatch.setattr(Simcse, "backward", kept)
    first = (tmp_path / "broken" / "stage-1" / "encoder" / "manifest.json").stat().st_mtime_ns
    torch.manual_seed(77)
    train_retriever(path, out=tmp_path / "broken", resume=True)
    assert (tmp_path / "broken" / "stage-1" / "encoder" / "manifest.json").stat().st_mtime_ns == first
    ended = load_encoder(tmp_path / "broken" / "encoder").model.state_dict()
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, ended[name]), name


def test_stages_that_cannot_be_run_are_one_clear_line(llama: Path, tmp_path: Path) -> None:
    path = staged(tmp_path)
    with pytest.raises(ConfigError, match="do nothing beside stages"):
        load_retriever_run(path, ["training={steps: 5}"])
    with pytest.raises(ConfigError, match="data is missing"):
        load_retriever_run(path, ["data=[]"])
    with pytest.raises(ConfigError, match="did you mean 'mntp'"):
        load_retriever_run(path, ["stages=[{name: a, training: {kind: mnpt}}]"])
    with pytest.raises(ArtifactError, match="has no head that tells the next token"):
        readied(both_ways(llama), kind="mntp")
    with pytest.raises(ConfigError, match="no mask token '<mask>'"):
        readied(both_ways(llama), kind="mntp", head="tied", mask_token="<mask>")
    with pytest.raises(ConfigError, match="takes an encoder with one tower"):
        readied(both_ways(llama, towers="separate"), kind="simcse")
