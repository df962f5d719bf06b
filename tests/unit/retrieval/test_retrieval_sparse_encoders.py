"""Learned sparse encoders: each head against a plain reference, the same values in plain sentence-transformers."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import rows
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.callbacks import SpladeRegularizerWeightSchedulerCallback
from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, TrainerControl, TrainerState

from retrieval.encoders.config import EncoderKind, ScratchSettings, preset
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.expansion import Expander
from retrieval.encoders.family import Encoded
from retrieval.encoders.impact import TermImpact
from retrieval.encoders.loading import load_encoder, new_encoder, open_encoder
from retrieval.encoders.scratch import make_backbone
from retrieval.encoders.sparse import SPARSE
from retrieval.passages import passage_text
from retrieval.training.config import TrainingSettings
from retrieval.training.flops import flops, quadratic
from retrieval.training.row import passages_of
from retrieval.training.terms import terms_of
from sleuth.errors import ArtifactError, ConfigError

TEXTS = ["This is about amber. It is old, amber!", "birch and coral", "delta delta ember"]
SMALL: dict[str, Any] = {"query_max_tokens": 16, "passage_max_tokens": 20}
HEADS = ["splade", "splade_doc", "unicoil", "deepimpact"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sparse_encoders") / "lm"
    texts = [row.query for row in rows()] + [passage_text(p) for p in passages_of(rows())]
    size = {"vocabulary": 90, "hidden_size": 32, "layers": 1, "heads": 2, "max_positions": 64, "masked_lm": True}
    make_backbone(path, texts, ScratchSettings.model_validate(size))
    return path


def made(name: str, folder: Path, **changes: Any) -> Encoder:
    """The encoder of a preset with random impacts, where it weighs terms by a layer of its own."""
    encoder = new_encoder(preset(name, str(folder), **{**SMALL, **changes}))
    torch.manual_seed(0)
    for module in encoder.tower("passage").modules():
        if isinstance(module, TermImpact):
            torch.nn.init.normal_(module.linear.weight, std=0.5)
    return encoder


def head_of(encoder: Encoder) -> TermImpact:
    return next(m for m in encoder.model.modules() if isinstance(m, TermImpact))


@pytest.mark.parametrize("towers", ["shared", "separate"])
@pytest.mark.parametrize("name", HEADS)
def test_what_is_saved_is_the_same_here_and_in_plain_sentence_transformers(
    name: str, towers: str, folder: Path, tmp_path: Path
) -> None:
    encoder = made(name, folder, towers=towers, query_prompt="ask: ")
    encoder.save(tmp_path / "e")
    back = load_encoder(tmp_path / "e")
    assert (back.settings, back.fingerprint) == (encoder.settings, encoder.fingerprint)
    plain = SparseEncoder(str(tmp_path / "e"), trust_remote_code=name in ("unicoil", "deepimpact"))
    for role, theirs in (("query", plain.encode_query), ("passage", plain.encode_document)):
        values = encoder.encode_texts(TEXTS, role).values
        assert values.shape == (len(TEXTS), encoder.dimension)
        assert values.any()
        assert torch.equal(back.encode_texts(TEXTS, role).values, values)
        np.testing.assert_allclose(values, theirs(TEXTS).to_dense(), rtol=1e-5, atol=1e-6)


def test_models_of_sentence_transformers_load_and_keep_as_many_words_as_they_say(folder: Path, tmp_path: Path) -> None:
    plain = SparseEncoder(str(folder), max_active_dims=4)
    plain.save(str(tmp_path / "plain"))
    encoder = open_encoder(tmp_path / "plain")
    assert isinstance(encoder, Encoder)
    assert encoder.family is SPARSE
    values = encoder.encode_texts(TEXTS, "passage").values
    assert (values > 0).sum(1).tolist() == [4, 4, 4]
    np.testing.assert_allclose(values, plain.encode_document(TEXTS).to_dense(), rtol=1e-5, atol=1e-6)
    assert encoder.dimension == values.shape[1]
    fewer = load_encoder(EncoderKind.of(backbone=str(tmp_path / "plain"), max_terms=2))
    fewer.save(tmp_path / "fewer")
    theirs = SparseEncoder(str(tmp_path / "fewer")).encode_document(TEXTS).to_dense()
    np.testing.assert_allclose(theirs, fewer.encode_texts(TEXTS, "passage").values, rtol=1e-5, atol=1e-6)
    with pytest.raises(ArtifactError, match="has head: splade, not unicoil"):
        load_encoder(EncoderKind.of(backbone=str(tmp_path / "plain"), head="unicoil"))


def test_splade_is_the_largest_saturated_logit_of_what_is_no_special_token(folder: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder).eval()
    for special, kept in (("masked", slice(1, -1)), ("pooled", slice(None))):
        found = made("splade", folder, special_tokens=special).encode_texts(TEXTS, "passage").values
        for text, values in zip(TEXTS, found, strict=True):
            with torch.no_grad():
                logits = model(**tokenizer(text, return_tensors="pt")).logits[0, kept]
            torch.testing.assert_close(values, logits.relu().log1p().amax(0), rtol=1e-5, atol=1e-6)


def reference(encoder: Encoder, folder: Path, text: str, by_word: bool) -> dict[int, float]:
    """Impacts one token at a time."""
    tokenizer, model, head = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder), head_of(encoder)
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        impacts = head.linear(model.eval()(**inputs).last_hidden_state[0]).relu()[1:-1, 0].tolist()
    ids, weights = inputs["input_ids"][0, 1:-1].tolist(), defaultdict[int, float](float)
    if not by_word:
        for token, impact in zip(ids, impacts, strict=True):
            weights[token] = max(weights[token], impact)
        return weights
    words: list[list[int]] = []
    for place, token in enumerate(ids):
        if not tokenizer.convert_ids_to_tokens(token).startswith("##"):
            words.append([])
        words[-1].append(place)
    seen: set[tuple[int, ...]] = set()
    for places in words:
        spelled = tuple(ids[place] for place in places)
        if spelled not in seen:
            for place in places:
                weights[ids[place]] = max(weights[ids[place]], impacts[places[0]] / len(places))
        seen.add(spelled)
    return weights


@pytest.mark.parametrize(("name", "by_word"), [("unicoil", False), ("deepimpact", True)])
def test_impacts_are_those_of_a_plain_reference(name: str, by_word: bool, folder: Path) -> None:
    encoder = made(name, folder, passage_max_tokens=60)
    texts = ["This is about amber. It is old, amber!", "nobody knows nobody", "fjordgrove heathislet fjordgrove x"]
    for text, values in zip(texts, encoder.encode_texts(texts, "passage").values, strict=True):
        expected = torch.zeros(encoder.dimension)
        for token, weight in reference(encoder, folder, text, by_word).items():
            expected[token] = weight
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)


def test_queries_without_a_model_are_their_tokens(folder: Path, tmp_path: Path) -> None:
    lines = [{"_id": p.id, "title": p.title, "text": p.text} for p in passages_of(rows())]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = set(tokenizer("delta ember", add_special_tokens=False)["input_ids"])
    plain = made("deepimpact", folder).encode_texts(["delta ember", "\u200b"], "query").values
    assert plain[0].nonzero().flatten().tolist() == sorted(ids)
    assert plain.sum() == len(ids)  # each once, and a query without a token finds nothing
    weighted = made(
        "splade_doc", folder, queries="idf", idf_corpus=str(tmp_path / "corpus.jsonl"), passage_max_tokens=60
    )
    values = weighted.encode_texts(["delta ember"], "query").values[0]
    held = [set(tokenizer(passage_text(p), add_special_tokens=False)["input_ids"]) for p in passages_of(rows())]
    for token in ids:
        n = sum(token in one for one in held)
        assert float(values[token]) == pytest.approx(np.log1p((len(held) - n + 0.5) / (n + 0.5)), rel=1e-5)
    assert not any(w.requires_grad for w in weighted.tower("query").parameters())
    assert all(w.requires_grad for w in made("splade_doc", folder).tower("query").parameters())
    weighted.save(tmp_path / "idf")
    assert load_encoder(tmp_path / "idf").fingerprint == weighted.fingerprint
    with pytest.raises(ConfigError, match="idf needs idf_corpus"):
        made("splade_doc", folder, queries="idf")


def test_passages_are_expanded_before_they_are_encoded(folder: Path, tmp_path: Path) -> None:
    made("splade", folder).save(tmp_path / "splade")
    changes = {"expansion": {"encoder": str(tmp_path / "splade"), "terms": 3}}
    bare, expanded = made("unicoil", folder), made("unicoil", folder, **changes)
    one, other = (e.encode_texts(TEXTS, "passage").values > 0 for e in (bare, expanded))
    assert (other & ~one).any()
    queries = [e.encode_texts(TEXTS, "query").values for e in (bare, expanded)]
    assert torch.equal(*queries)
    assert bare.tower_fingerprint("passage") != expanded.tower_fingerprint("passage")
    assert bare.tower_fingerprint("query") == expanded.tower_fingerprint("query")
    assert expanded.expander is not None
    long = "amber birch coral delta " * 20
    tokenizer = bare.model.tokenizer
    read = expanded.expander([long], tokenizer, expanded.settings)[0]
    assert len(tokenizer(read)["input_ids"]) <= SMALL["passage_max_tokens"]
    assert len(set(read.split()) - set(long.split())) == 3
    every = Expander(load_encoder(tmp_path / "splade"), 90)
    with torch.no_grad():
        for name, weight in every.encoder.model.named_parameters():
            weight += 9 * name.endswith("predictions.bias")  # it gives every text every word
    roomy = expanded.settings.model_copy(update={"passage_max_tokens": 400})
    glued, words = "(THIS), (MORE) (PLEASE).", {"this", "more", "please"}
    assert not words & set(every([glued], tokenizer, roomy)[0].split())  # whatever stands around them
    assert words <= set(every(["amber"], tokenizer, roomy)[0].split())
    expanded.save(tmp_path / "unicoil")
    back = load_encoder(tmp_path / "unicoil")
    assert back.fingerprint == expanded.fingerprint
    assert torch.equal(back.encode_texts(TEXTS, "passage").values, expanded.encode_texts(TEXTS, "passage").values)
    with pytest.raises(ConfigError, match="cannot expand passages"):
        dense = new_encoder(preset("plain", str(folder), **SMALL))
        dense.save(tmp_path / "dense")
        made("unicoil", folder, expansion={"encoder": str(tmp_path / "dense")})


def test_passages_are_expanded_by_pieces_of_words(folder: Path, tmp_path: Path) -> None:
    splade = made("splade", folder)
    splade.save(tmp_path / "splade")
    expansion = {"encoder": str(tmp_path / "splade"), "terms": 4, "pieces": True}
    bare, expanded = made("unicoil", folder), made("unicoil", folder, expansion=expansion)
    long = "amber birch coral delta " * 20
    texts = [*TEXTS, long]
    heaviest = splade.encode_texts(texts, "passage").values.topk(16).indices.tolist()
    special = set(bare.model.tokenizer.all_special_ids)
    for text, best in zip(texts, heaviest, strict=True):
        own, read = (e.features([text], "passage")["input_ids"][0].tolist() for e in (bare, expanded))
        lacking = [i for i in best if i not in set(bare.model.tokenizer(text)["input_ids"]) | special][:4]
        kept = min(len(own), SMALL["passage_max_tokens"] - 4)
        assert read == [*own[: kept - 1], *lacking, own[-1]]
    words = made("unicoil", folder, expansion=expansion | {"pieces": False})
    assert words.tower_fingerprint("passage") != expanded.tower_fingerprint("passage")
    expanded.save(tmp_path / "unicoil")
    back = load_encoder(tmp_path / "unicoil")
    assert torch.equal(back.encode_texts(texts, "passage").values, expanded.encode_texts(texts, "passage").values)
    with pytest.raises(ConfigError, match="DeepImpact weighs words"):
        made("deepimpact", folder, expansion=expansion)


def test_terms_take_at_most_half_of_a_passage(folder: Path, tmp_path: Path) -> None:
    made("splade", folder).save(tmp_path / "splade")
    long = "amber birch coral delta " * 20
    for pieces in (False, True):
        expansion = {"encoder": str(tmp_path / "splade"), "terms": 200, "pieces": pieces}
        read = made("unicoil", folder, expansion=expansion).features([long], "passage")["input_ids"][0]
        own = made("unicoil", folder).features([long], "passage")["input_ids"][0]
        assert len(read) <= SMALL["passage_max_tokens"]
        assert read[:5].tolist() == own[:5].tolist()  # of words, only whole ones


def test_pieces_leave_a_short_context_whole(folder: Path, tmp_path: Path) -> None:
    made("splade", folder).save(tmp_path / "splade")
    expansion = {"encoder": str(tmp_path / "splade"), "terms": 200, "pieces": True}
    encoder = made("unicoil", folder, expansion=expansion)
    encoder.model.tokenizer.model_max_length = 8  # less than passage_max_tokens
    read = encoder.features(["amber birch coral delta " * 20, "amber"], "passage")
    assert read["attention_mask"].sum(1).max() <= 8


def test_a_backbone_without_a_masked_lm_head_is_refused(backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"has no masked-LM head, by which SPLADE weighs words: BertModel"
    ) as caught:
        new_encoder(preset("splade", str(backbone), **SMALL))
    assert "\n" not in str(caught.value)
    make_backbone(tmp_path / "llama", ["a few words"], ScratchSettings(family="llama", vocabulary=64, hidden_size=16))
    with pytest.raises(ArtifactError, match="has no masked-LM head"):
        new_encoder(preset("splade", str(tmp_path / "llama"), **SMALL))
    assert new_encoder(preset("unicoil", str(tmp_path / "llama"), **SMALL)).encode_texts(["a"], "query").values.any()


def test_the_regulariser_rises_as_the_librarys_does(folder: Path) -> None:
    model = made("splade", folder).model
    loss = SpladeLoss(model, SparseMultipleNegativesRankingLoss(model), 0.5, 2.0)
    callback = SpladeRegularizerWeightSchedulerCallback(loss)
    for steps in (1, 7, 30):
        state = TrainerState(max_steps=steps)
        callback.on_train_begin(None, state, TrainerControl())
        for step in range(steps):
            state.global_step = step
            callback.on_step_begin(None, state, TrainerControl())
            weight = callback._calculate_weight_value(step, 0.5)
            assert 0.5 * quadratic(step, steps, 1 / 3) == pytest.approx(weight)


def test_only_sparse_encoders_are_regularised(folder: Path) -> None:
    chosen = TrainingSettings.model_validate({"steps": 3, "regulariser": {"query": 1.0}})
    with pytest.raises(ConfigError, match=r"training\.regulariser is for sparse encoders, and this one is dense"):
        terms_of(chosen, new_encoder(preset("plain", str(folder), **SMALL)))
    usual = TrainingSettings.model_validate({"steps": 3})
    assert terms_of(usual, new_encoder(preset("plain", str(folder), **SMALL))) is None
    assert terms_of(usual, made("unicoil", folder)) is None
    assert terms_of(usual, made("splade", folder)) is not None
    assert float(flops(Encoded(torch.tensor([[1.0, 0.0], [3.0, 1.0]])))) == pytest.approx(4.25)
