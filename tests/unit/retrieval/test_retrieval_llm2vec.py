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
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from cli.train_retriever import train_retriever
from hub.config import EncoderLoraSettings
from retrieval.encoders.attention import is_bidirectional, make_bidirectional
from retrieval.encoders.config import preset
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.loading import load_encoder, new_encoder
from retrieval.training.config import TrainingSettings
from retrieval.training.objective import InBatch
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


def decoder(family: str, **more: Any) -> Any:
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    keys = {"vocab_size": 120, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModel.from_config(AutoConfig.for_model(family, **size, **keys, max_position_embeddings=64, **more))


WINDOW = {"sliding_window": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, **WINDOW},
    "qwen3": {},
    "mistral": WINDOW,
    "gemma": {},
    "gemma2": WINDOW,
    "gemma3_text": WINDOW,
    "smollm3": {},
    "phi3": {},
    "olmo2": {},
    "gpt2": {},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_decoders_look_ahead_in_plain_sentence_transformers(family: str, llama: Path, tmp_path: Path) -> None:
    """Whatever the batch: without padding, transformers may leave the mask out."""
    decoder(family, **FAMILIES[family]).save_pretrained(tmp_path / "b")
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path / "b")
    encoder = both_ways(tmp_path / "b", query_prompt="")
    encoder.save(tmp_path / "e")
    plain = SentenceTransformer(str(tmp_path / "e"))
    assert is_bidirectional(plain[0].config)  # type: ignore[arg-type]
    for texts in (TEXTS, TEXTS[1:2]):
        np.testing.assert_allclose(encoder.encode(texts, "passage"), plain.encode_document(texts), atol=2e-6)
    alone = np.concatenate([plain.encode_document([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS, "passage"), alone, atol=2e-6)
    for ids in (torch.tensor([[5, 6, 7], [5, 6, 8]]), torch.tensor([[5, 6, 7, 0], [5, 6, 8, 0]])):
        with torch.no_grad():
            states = plain[0].model(input_ids=ids, attention_mask=(ids > 0).long()).last_hidden_state[:, 0]  # type: ignore[operator]
        assert not torch.allclose(*states, atol=1e-6)


@pytest.mark.parametrize("family", ["stablelm", "nemotron"])
def test_decoders_that_would_be_causal_again_once_saved_are_refused(family: str) -> None:
    """They drop what their configuration says on the way to their attention, so a saved model would."""
    with pytest.raises(ArtifactError, match=f"m is a {family}, whose attention stays causal"):
        make_bidirectional(decoder(family), "m")


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


def reference(
    encoder: Encoder, objective: Mntp, texts: list[str], own_head: torch.Tensor | None = None
) -> torch.Tensor:
    """One text after the other, in plain transformers: token i from the state of token i - 1."""
    first = encoder.model[0]
    features = encoder.features(texts, "passage")
    chosen = objective.masked(encoder, features, 0)
    mask = first.tokenizer.mask_token_id
    head, losses = first.model.get_input_embeddings().weight if own_head is None else own_head, []
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


def test_a_backbones_own_head_tells_its_tokens(llama: Path, tmp_path: Path) -> None:
    """A head that is not the input embeddings stays as it is, and is not part of the encoder."""
    tokenizer = AutoTokenizer.from_pretrained(llama)
    config = AutoConfig.from_pretrained(llama, vocab_size=len(tokenizer), tie_word_embeddings=False)
    whole = AutoModelForCausalLM.from_config(config)
    whole.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = both_ways(tmp_path)
    objective = readied(encoder, kind="mntp", micro_batch=4)
    expected = reference(encoder, objective, objective._texts.batch(0), whole.lm_head.weight)
    assert objective.backward(encoder, 0)["loss"] == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_batch_of_short_texts_is_masked_somewhere(llama: Path) -> None:
    """No step is lost to the luck of the draw, nor does it end the training."""
    encoder = both_ways(llama)
    objective = readied(encoder, kind="mntp", head="tied", mask_share=1e-9, batch_size=2)
    features = encoder.features(["a b", "c"], "passage")
    for step in range(5):
        chosen = objective.masked(encoder, features, step)
        assert chosen.sum() == 1
        assert features["attention_mask"][chosen].all()
        assert not chosen[:, 0].any()


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


def dying_at(last: int, kept: Any) -> Any:
    def backward(self: Any, encoder: Encoder, step: int) -> dict[str, float]:
        if step == last:
            raise Killed
        figures: dict[str, float] = kept(self, encoder, step)
        return figures

    return backward


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
    written: dict[Path, int] = {}
    for objective, last in ((Mntp, 2), (Simcse, 3), (InBatch, 1)):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(objective, "backward", dying_at(last, objective.backward))
            train_retriever(path, out=tmp_path / "broken", resume=(tmp_path / "broken").exists())
        for manifest in (tmp_path / "broken").glob("stage-*/encoder/manifest.json"):
            assert written.setdefault(manifest, manifest.stat().st_mtime_ns) == manifest.stat().st_mtime_ns
        torch.manual_seed(77)
    train_retriever(path, out=tmp_path / "broken", resume=True)
    assert len(written) == 2
    assert all(manifest.stat().st_mtime_ns == time for manifest, time in written.items())
    ended = load_encoder(tmp_path / "broken" / "encoder").model.state_dict()
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, ended[name]), name


def test_stages_that_cannot_be_run_are_one_clear_line(llama: Path, tmp_path: Path) -> None:
    path = staged(tmp_path)
    with pytest.raises(ConfigError, match="do nothing beside stages"):
        load_retriever_run(path, ["training={steps: 5}"])
    with pytest.raises(ConfigError, match="round_corpus do nothing beside stages"):
        load_retriever_run(path, ["round_corpus=x"])
    with pytest.raises(ConfigError, match="augmentation has stages of its own"):
        load_retriever_run(path, ["augmentation={corpus: x, teachers: [{index: x}]}"])
    with pytest.raises(ConfigError, match="two stages are called 'mntp'"):
        load_retriever_run(path, ["stages.1.name=mntp"])
    with pytest.raises(ConfigError, match="hard_negatives does nothing for a training objective of kind mntp"):
        load_retriever_run(path, ["stages.0.training.hard_negatives=5"])
    with pytest.raises(ConfigError, match="regulariser does nothing for a training objective of kind simcse"):
        load_retriever_run(path, ["stages.1.training.regulariser={}"])
    with pytest.raises(ConfigError, match="no queries to train on: give data, for the run or for each of its stages"):
        load_retriever_run(path, ["data=[]"])
    with pytest.raises(ConfigError, match="did you mean 'mntp'"):
        load_retriever_run(path, ["stages=[{name: a, training: {kind: mnpt}}]"])
    with pytest.raises(ArtifactError, match="has no head that tells the next token"):
        readied(both_ways(llama), kind="mntp")
    with pytest.raises(ConfigError, match="no mask token '<mask>'"):
        readied(both_ways(llama), kind="mntp", head="tied", mask_token="<mask>")
    with pytest.raises(ConfigError, match="takes an encoder with one tower"):
        readied(both_ways(llama, towers="separate"), kind="simcse")
