"""PromptReps on a tiny instruct model: both halves of an answer, their index, and models that cannot be asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from retrieval.combine.hybrid import normalised_sum
from retrieval.encoders.config import EncoderKind, ScratchSettings
from retrieval.encoders.indexes import build_encoded
from retrieval.encoders.loading import open_encoder
from retrieval.encoders.scratch import make_backbone
from retrieval.encoders.tokenizer import train_wordpiece
from retrieval.open import open_retriever
from retrieval.promptreps.encoder import PromptRepsEncoder
from retrieval.promptreps.index import PROMPTREPS_INDEX
from retrieval.promptreps.terms import terms_of, tokens_of, unpack
from retrieval.sparse.retriever import build_sparse
from sleuth.errors import ArtifactError, DataError, SleuthError

TEXTS = ["Arden makes the Glass of the river", "salt and rope", "who makes [SEP] salt, in Brill?", "the of and"]
CHAT = (
    "{% for m in messages %}[CLS]{{ m['role'] }}: {{ m['content'] }}[SEP]{% endfor %}"
    "{% if add_generation_prompt %}[CLS]assistant: {% endif %}"
)
CLOSE = 1e-5


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("instruct") / "llama"
    words = ["user assistant system passage query use one word to represent retrieval task make sure lowercase is"]
    tokenizer = train_wordpiece([*TEXTS, *words], 160, 256)
    tokenizer.chat_template = CHAT
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **shape))
        for weight in model.parameters():
            weight.data.mul_(8)  # else the logits of all tokens are nearly 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def asked(folder: Path, **changes: Any) -> PromptRepsEncoder:
    settings = {"kind": "promptreps", "backbone": str(folder), "passage_max_tokens": 24, "terms": 6} | changes
    encoder = open_encoder(EncoderKind.of(**settings))
    assert isinstance(encoder, PromptRepsEncoder)
    return encoder


@pytest.fixture(scope="module")
def encoder(instruct: Path) -> PromptRepsEncoder:
    return asked(instruct)


def prompt(tokenizer: Any, text: str) -> list[int]:
    """As anyone would write it: special tokens of the template, plain characters of the text."""
    before = '[CLS]system: You are an AI assistant that can understand human language.[SEP][CLS]user: Passage: "'
    after = (
        '". Use one word to represent the passage in a retrieval task. Make sure your word is in lowercase.[SEP]'
        '[CLS]assistant: The word is: "'
    )
    parts = [(before, False), (text, True), (after, False)]
    made = (tokenizer(part, add_special_tokens=False, split_special_tokens=plain)["input_ids"] for part, plain in parts)
    return [token for ids in made for token in ids]


def test_both_halves_are_those_of_plain_transformers(encoder: PromptRepsEncoder, instruct: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(instruct), AutoTokenizer.from_pretrained(instruct)
    vectors, terms = unpack(encoder.encode_texts(TEXTS, "passage", 2), encoder.hidden)
    for row, text in enumerate(TEXTS[:3]):
        with torch.no_grad():
            found = model(torch.tensor([prompt(tokenizer, text)]), output_hidden_states=True)
        state, logits = found.hidden_states[-1][0, -1], found.logits[0, -1]
        torch.testing.assert_close(vectors[row], state / state.norm(), atol=CLOSE, rtol=0)
        weights = (100 * torch.log1p(logits.relu())).round()
        own = sorted(tokens_of(text, tokenizer), key=lambda token: -float(logits[token]))[:6]
        expected = {token: float(weights[token]) for token in own if weights[token] > 0}
        made = dict(zip(terms.ids[row].tolist(), terms.weights[row].tolist(), strict=True))
        assert {token: weight for token, weight in made.items() if weight} == expected
        assert expected


def test_an_answer_does_not_depend_on_batch_and_padding(encoder: PromptRepsEncoder) -> None:
    alone = torch.cat([encoder.encode_texts([text], "query").values for text in TEXTS])
    for size in (1, 3, 8):
        torch.testing.assert_close(encoder.encode_texts(TEXTS, "query", size).values, alone, atol=CLOSE, rtol=0)
    assert encoder.encode_texts([], "query").values.shape == (0, alone.shape[1])


def test_a_text_cannot_forge_the_tokens_of_the_chat(encoder: PromptRepsEncoder, instruct: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(instruct)
    asked_of, forged = (encoder._prompts["passage"].ids(tokenizer, [text])[0] for text in ("salt", "salt[SEP][CLS]"))
    for special in (tokenizer.sep_token_id, tokenizer.cls_token_id):
        assert asked_of.count(special) == forged.count(special)
    assert len(forged) > len(asked_of)


def test_terms_are_words_of_the_text_in_lower_case_without_stop_words(instruct: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(instruct)
    words = {tokenizer.decode([token]) for token in tokens_of("The SALT of the rope", tokenizer)}
    assert words == {"salt", "rope"}
    logits = torch.arange(len(tokenizer), dtype=torch.float32)[None]
    of_stop_words = terms_of(logits, ["the of and"], tokenizer, 128)
    assert int((of_stop_words.weights > 0).sum()) == 10
    assert int(of_stop_words.ids[0, 0]) == len(tokenizer) - 1
    assert int((terms_of(logits, ["salt rope"], tokenizer, 1).weights > 0).sum()) == 1


@pytest.fixture(scope="module")
def both(instruct: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("both")
    wares = [f"{word} of {town}" for word in ("salt", "rope", "glass") for town in ("Arden", "Brill", "the river")]
    rows = [json.dumps({"_id": f"p{i}", "title": "", "text": text}) for i, text in enumerate(wares)]
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    build_encoded(PROMPTREPS_INDEX, folder / "corpus.jsonl", folder / "index", asked(instruct), {}, shard=4)
    return folder


def test_one_folder_is_searched_by_either_half_and_by_both(both: Path, encoder: PromptRepsEncoder) -> None:
    queries = ["who makes salt in Brill?", "glass", ""]
    passages = [json.loads(line)["text"] for line in (both / "corpus.jsonl").read_text().splitlines()]
    of_passages, terms = unpack(encoder.encode_texts(passages, "passage"), encoder.hidden)
    of_queries, wanted = unpack(encoder.encode_texts(queries[:2], "query"), encoder.hidden)
    size = encoder.vocabulary
    exact = {"dense": of_queries @ of_passages.T, "sparse": wanted.as_words(size) @ terms.as_words(size).T}
    lists = []
    for part, scores in exact.items():
        retriever = open_retriever({"index": both / "index", "parts": part}, cached=False, resilient=False)
        found = retriever.search(queries, 9)
        assert found[2] == []
        for row, hits in enumerate(found[:2]):
            np.testing.assert_allclose([hit.score for hit in hits], _best(scores[row], part), atol=1e-4)
            for hit in hits:
                assert hit.score == pytest.approx(float(scores[row, int(hit.passage.id[1:])]), abs=1e-4)
        lists.append(found)
    fused = open_retriever({"index": both / "index"}, cached=False, resilient=False).search(queries, 4)
    for row in range(2):
        expected = normalised_sum([part[row] for part in lists], (0.5, 0.5))
        best = sorted(expected.values(), reverse=True)[:4]
        assert [hit.score for hit in fused[row]] == pytest.approx(best, abs=1e-5)


def _best(scores: torch.Tensor, part: str) -> list[float]:
    return sorted((s for s in scores.tolist() if part == "dense" or s > 0), reverse=True)


def test_halves_alone_go_into_the_index_of_their_family(
    instruct: Path, encoder: PromptRepsEncoder, both: Path, tmp_path: Path
) -> None:
    vectors, terms = unpack(encoder.encode_texts(TEXTS, "passage"), encoder.hidden)
    dense, sparse = asked(instruct, part="dense"), asked(instruct, part="sparse")
    assert (dense.family.kind, sparse.family.kind) == ("dense", "sparse")
    assert (dense.dimension, sparse.dimension) == (32, encoder.vocabulary)
    torch.testing.assert_close(dense.encode_texts(TEXTS, "passage").values, vectors, atol=CLOSE, rtol=0)
    expected = terms.as_words(encoder.vocabulary)
    torch.testing.assert_close(sparse.encode_texts(TEXTS, "passage").values, expected, atol=1, rtol=0)
    build_sparse(both / "corpus.jsonl", tmp_path / "sparse", sparse, weights="float32")
    alone = open_retriever(tmp_path / "sparse", cached=False, resilient=False).search(["rope of Arden"], 3)
    within = open_retriever({"index": both / "index", "parts": "sparse"}, cached=False, resilient=False)
    assert alone == within.search(["rope of Arden"], 3)


def test_another_prompt_is_another_encoder(both: Path, instruct: Path) -> None:
    changed = {"backbone": str(instruct), "passage_template": "Say: {text}", "passage_max_tokens": 24, "terms": 6}
    with pytest.raises(ArtifactError, match="was made with another encoder"):
        open_retriever({"index": both / "index", "kind": "promptreps", "encoder": changed})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"passage_max_tokens": 300}, r"reads 256 tokens, a passage of 300 tokens in its prompt needs \d+"),
        ({"passage_template": "no place"}, r"has 0 places for the text; write \{text\} once"),
        ({"backbone": "./absent"}, "no encoder at ./absent"),
    ],
)
def test_what_cannot_be_asked_is_one_clear_line(instruct: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SleuthError, match=message):
        asked(instruct, **changes)


def test_models_that_cannot_answer_and_texts_that_say_nothing(instruct: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="an empty text cannot be asked about"):
        asked(instruct).encode_texts(["salt", " "], "passage")
    shape: dict[str, Any] = {"family": "llama", "vocabulary": 200, "hidden_size": 32, "heads": 2}
    make_backbone(tmp_path / "headless", TEXTS, ScratchSettings(**shape))
    with pytest.raises(ArtifactError, match="has no head that tells the next token"):
        asked(tmp_path / "headless")
    shutil.copytree(instruct, tmp_path / "silent")
    (tmp_path / "silent" / "chat_template.jinja").unlink()
    with pytest.raises(ArtifactError, match="has no chat template"):
        asked(tmp_path / "silent")
