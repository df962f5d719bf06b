"""The tiny policy: a tokenizer that spells every text of a world, and a network that plain transformers loads."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from agent.codec import HFCodec
from agent.tiny import TAGS, build_tiny_policy, make_model, make_tokenizer
from agent.tiny_config import TinySettings
from envs.grammar import parse_turn
from envs.toy_world.config import WorldSettings
from envs.toy_world.generate import World, generate_world
from envs.toy_world.lexicon import split_name
from sleuth.artifacts import read_manifest
from sleuth.types import Answer, Search

WORLD = WorldSettings(films=200, people=200, companies=100, cities=100, countries=50, train=200, dev=50, test=50)


@pytest.fixture(scope="module")
def world() -> World:
    return generate_world(WORLD.model_copy(update={"paraphrase": 0.5}))


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny") / "policy"
    build_tiny_policy(out, world.vocabulary, TinySettings(), seed=0)
    return out


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


def _texts(world: World) -> list[str]:
    texts = [text for p in world.passages for text in (p.title, p.text)]
    for plans in world.plans.values():
        for plan in plans:
            texts += [plan.question.text, plan.think, plan.answer]
            texts += [text for step in plan.steps for text in (step.think, step.query, step.found)]
    return texts


def test_every_text_of_the_world_survives_in_known_pieces(world: World, tokenizer: PreTrainedTokenizerFast) -> None:
    known = {tokenizer.convert_tokens_to_ids(piece) for piece in world.vocabulary}
    for text in _texts(world):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert set(ids) <= known, text  # closed: spelt without the fallback to single characters


def test_names_are_cut_at_their_syllables(world: World, tokenizer: PreTrainedTokenizerFast) -> None:
    for name in world.entities:
        pieces = [piece.removeprefix("##").lower() for piece in tokenizer.tokenize(name)]
        assert pieces == split_name(name)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40))
@example("<unk>")
@settings(max_examples=200, deadline=None)
def test_ascii_is_never_unknown_and_keeps_its_letters(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assume(not any(tag in text for tag in TAGS))
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert re.sub(r"\s", "", tokenizer.decode(ids)) == text


def test_a_turn_parses_after_the_round_trip_through_tokens(world: World, tokenizer: PreTrainedTokenizerFast) -> None:
    codec = HFCodec(tokenizer)
    for plan in world.plans["dev"]:
        step = plan.steps[0]
        ids = codec.encode(f"<think>{step.think}</think><search>{step.query}</search>", trusted=True)
        assert parse_turn(codec.decode(ids)) == Search(step.query)
        ids = codec.encode(f"<think>{plan.think}</think>\n<answer>{plan.answer}</answer>", trusted=True)
        assert parse_turn(codec.decode(ids)) == Answer(plan.answer)


def test_tags_are_single_tokens_that_only_we_can_write(tokenizer: PreTrainedTokenizerFast) -> None:
    codec = HFCodec(tokenizer)
    for tag in TAGS:
        assert len(codec.encode(tag, trusted=True)) == 1
        assert tag in codec.reserved
        assert codec.encode(tag, trusted=True)[0] not in codec.encode(f"x {tag} y")
    assert codec.decode([tokenizer.pad_token_id, *codec.encode("Need", trusted=True), tokenizer.eos_token_id]) == "Need"


def test_words_added_to_a_vocabulary_are_words(tokenizer: PreTrainedTokenizerFast) -> None:
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(["Oslo"])
    codec = HFCodec(larger)
    assert codec.decode(codec.encode("Where is Oslo ?")) == larger.decode(codec.encode("Where is Oslo ?", trusted=True))
    assert "Oslo" in codec.decode(codec.encode("Where is Oslo ?"))


def test_lines_stay_lines(tokenizer: PreTrainedTokenizerFast) -> None:
    codec = HFCodec(tokenizer)
    ids = codec.encode("Question: Name it.\n<information>\na\nb\n</information>\n", trusted=True)
    assert codec.decode(ids).count("\n") == 5
    assert codec.encode("a", trusted=True) + codec.encode("\n", trusted=True) == codec.encode("a\n", trusted=True)


def test_plain_transformers_loads_it_and_it_has_about_a_million_parameters(folder: Path, world: World) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert 700_000 < sum(p.numel() for p in model.parameters()) < 1_500_000
    assert model.config.vocab_size == len(tokenizer) == len(set(tokenizer.get_vocab().values()))
    assert (model.config.pad_token_id, model.config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id
    text = world.passages[0].text
    assert PreTrainedTokenizerFast.from_pretrained(folder)(text) == tokenizer(text)
    assert read_manifest(folder, "policy", "sleuth warmstart")["trained"] is False


def test_the_seed_decides_the_weights() -> None:
    shape = TinySettings(hidden_size=64, layers=2)
    one, same, other = (make_model(50, 0, 1, shape, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


@pytest.mark.parametrize("shape", [{}, {"hidden_size": 64, "layers": 2}])
def test_the_first_head_attends_to_the_previous_token_and_hardly_to_another(shape: dict[str, int]) -> None:
    """Where it halts between two, what the network says next hangs on the rounding of their scores."""
    settings = TinySettings.model_validate(shape)
    model = make_model(200, 0, 1, settings, 0)
    model.set_attn_implementation("eager")
    ids = torch.randint(2, 200, (1, settings.max_length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attention = model(ids, output_attentions=True).attentions[0][:, 0]
    assert attention.diagonal(offset=-1, dim1=-2, dim2=-1).min() > 0.9999


def test_two_heads_look_for_what_followed_the_last_occurrence_before_any_training() -> None:
    model = make_model(500, 0, 1, TinySettings(), 0)
    model.set_attn_implementation("eager")
    generator, count = torch.Generator().manual_seed(0), 20
    half = torch.stack([torch.randperm(498, generator=generator)[:count] + 2 for _ in range(8)])
    attention = model(torch.cat([half, half], 1), output_attentions=True).attentions[1]
    again = torch.arange(count, 2 * count - 1)
    followed = attention[:, :, again, again - count + 1].mean((0, 2))
    assert followed[[0, 2]].min() > 5 * followed[[1, 3]].max()


def test_a_shape_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValidationError, match="heads times an even number"):
        TinySettings(hidden_size=130, heads=4)
    assert len(make_tokenizer(["a"], 64)) > 100
