"""The made-up world: deterministic, split by entity, answerable by walking; paraphrased, out of BM25's reach."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.lazy import lazy_counts, with_lazy_share
from envs.plans import Reciter, lazy
from envs.toy_world.config import SPLITS, KindMix, WorldSettings
from envs.toy_world.facts import RELATIONS, YEAR
from envs.toy_world.generate import World, generate_world
from envs.toy_world.lexicon import SYNONYMS, Lexicon, draw_names, split_name
from envs.toy_world.questions import CHAIN_KINDS, CHAINS
from envs.toy_world.write import named_titles
from sleuth.errors import ConfigError

SIZES = {"films": 400, "people": 400, "companies": 200, "cities": 200, "countries": 100}
COUNTS = {"train": 600, "dev": 120, "test": 120}
ALL = WorldSettings(**SIZES, **COUNTS)


@pytest.fixture(scope="module")
def plain() -> World:
    return generate_world(ALL)


@pytest.fixture(scope="module")
def paraphrased() -> World:
    return generate_world(ALL.model_copy(update={"paraphrase": 1.0}))


class Bm25:
    """The textbook formula over lower-cased words, title and text, k1 = 0.9, b = 0.4."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.postings: dict[str, list[tuple[str, float]]] = defaultdict(list)
        words = {name: _words(text) for name, text in texts.items()}
        mean = sum(map(len, words.values())) / len(words)
        for name, tokens in words.items():
            for word, count in Counter(tokens).items():
                norm = count + 0.9 * (0.6 + 0.4 * len(tokens) / mean)
                self.postings[word].append((name, count * 1.9 / norm))
        self.idf = {w: math.log(1 + (len(texts) - len(p) + 0.5) / (len(p) + 0.5)) for w, p in self.postings.items()}

    def top(self, query: str, k: int) -> list[str]:
        scores: Counter[str] = Counter()
        for word in _words(query):
            for name, weight in self.postings.get(word, ()):
                scores[name] += self.idf[word] * weight
        return [name for name, _ in sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _index(world: World) -> Bm25:
    return Bm25({p.title: f"{p.title}\n{p.text}" for p in world.passages})


def _recall(world: World, split: str) -> float:
    index = _index(world)
    found = total = 0
    for plan in world.plans[split]:
        hits = index.top(plan.question.text, 5)
        titles = named_titles(plan)
        found += sum(title in hits for title in titles)
        total += len(titles)
    return found / total


def test_same_settings_give_the_same_world_and_another_seed_another(plain: World) -> None:
    assert generate_world(ALL) == plain
    other = generate_world(ALL.model_copy(update={"seed": 1}))
    assert not set(other.entities) & set(plain.entities) or other.passages != plain.passages
    assert other.lexicon != plain.lexicon


def test_every_entity_has_one_passage_that_tells_all_its_facts(plain: World) -> None:
    assert len(plain.passages) == sum(SIZES.values()) == len({p.title for p in plain.passages})
    assert len({p.id for p in plain.passages}) == len(plain.passages)
    for passage in plain.passages:
        entity = plain.entities[passage.title]
        for value in (entity.name, *entity.facts.values()):
            assert value in _capital_words(passage.text), passage


def _capital_words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def test_relations_and_questions_stay_within_their_split(plain: World) -> None:
    splits = {name: entity.split for name, entity in plain.entities.items()}
    for entity in plain.entities.values():
        for relation, value in entity.facts.items():
            if RELATIONS[entity.type][relation] != YEAR:
                assert splits[value] == entity.split
                assert plain.entities[value].type == RELATIONS[entity.type][relation]
    for split in SPLITS:
        for plan in plain.plans[split]:
            mentioned = [w for w in _capital_words(plan.question.text) if w in splits]
            assert mentioned
            assert {splits[name] for name in (*mentioned, *plan.question.supporting_titles)} == {split}


def test_a_capital_lies_in_its_country(plain: World) -> None:
    for entity in plain.entities.values():
        if entity.type == "country":
            assert plain.entities[entity.facts["capital"]].facts["country"] == entity.name


@pytest.mark.parametrize("world", ["plain", "paraphrased"])
def test_every_answer_is_reached_by_walking_the_passages(world: str, request: pytest.FixtureRequest) -> None:
    made: World = request.getfixturevalue(world)
    texts = {p.title: p.text for p in made.passages}
    aliases = {made.lexicon.alias(name): name for name in made.entities} if world == "paraphrased" else {}
    for split in SPLITS:
        for plan in made.plans[split]:
            question, titles = plan.question, plan.question.supporting_titles
            for step, title in zip(plan.steps, titles, strict=True):
                assert aliases.get(step.query, step.query) == title
                assert step.found in _capital_words(texts[title])
            if question.kind in ("one_hop", *CHAIN_KINDS):
                assert plan.steps[0].query in _capital_words(question.text)
                assert titles[1:] == tuple(step.found for step in plan.steps[:-1])
                assert question.answers == (plan.answer,) == (plan.steps[-1].found,)
            else:
                a, b = plan.steps
                assert [w for w in _capital_words(question.text) if w in (a.query, b.query)] == [a.query, b.query]
                assert plan.answer == question.answers[0] == _expected(question.text, question.kind, made, titles)


def _expected(text: str, kind: str, world: World, titles: tuple[str, ...]) -> str:
    """The answer worked out anew from the facts and the words of the question."""
    words = {word: key for key, word in world.lexicon.word.items()}
    plain_text = " ".join(words.get(word, word) for word in _capital_words(text))
    facts = [world.entities[title].facts for title in titles]
    (relation,) = [name for name in facts[0] if f" {name}" in f" {plain_text}"]
    first, second = (fact[relation] for fact in facts)
    if kind == "yes_no":
        return "yes" if first == second else "no"
    pair = [w for w in _capital_words(text) if w in world.entities or w in map(world.lexicon.alias, titles)]
    return pair[(int(first) > int(second)) == (" earlier " in plain_text)]


def test_kinds_come_in_their_shares_and_yes_no_and_order_are_balanced(plain: World) -> None:
    plans = plain.plans["train"]
    kinds = Counter(plan.question.kind for plan in plans)
    assert kinds == {"one_hop": 240, "two_hop": 160, "three_hop": 80, "comparison": 60, "yes_no": 60}
    for plan in plans:
        hops = {"one_hop": 1, "two_hop": 2, "three_hop": 3, "comparison": 2, "yes_no": 2}
        assert len(plan.steps) == hops[plan.question.kind]
    yes = sum(plan.answer == "yes" for plan in plans if plan.question.kind == "yes_no")
    assert 18 <= yes <= 42
    first = sum(plan.answer == plan.steps[0].query for plan in plans if plan.question.kind == "comparison")
    assert 18 <= first <= 42
    assert len({(plan.question.text, plan.question.kind) for plan in plans}) > 0.97 * len(plans)


def test_every_chain_follows_relations_that_exist() -> None:
    owners = {relation: kind for kind, facts in RELATIONS.items() for relation in facts}
    for hops, chains in enumerate(CHAINS.values(), start=1):
        for chain in chains:
            assert len(chain) == hops
            for relation, following in itertools.pairwise(chain):
                assert RELATIONS[owners[relation]][relation] == owners[following]


def test_paraphrase_changes_words_and_nothing_else(plain: World, paraphrased: World) -> None:
    assert plain.passages == paraphrased.passages
    for split in SPLITS:
        for a, b in zip(plain.plans[split], paraphrased.plans[split], strict=True):
            assert (a.question.id, a.question.supporting_titles) == (b.question.id, b.question.supporting_titles)
            assert a.question.text != b.question.text


def test_paraphrased_words_are_in_no_passage_and_training_covers_them_all(paraphrased: World) -> None:
    passage_words = {word for p in paraphrased.passages for word in _words(f"{p.title} {p.text}")}
    lexicon = paraphrased.lexicon
    assert not passage_words & set(lexicon.word.values())
    assert not passage_words & {lexicon.alias(name).lower() for name in paraphrased.entities}
    asked = [word for plan in paraphrased.plans["test"] for word in _words(plan.question.text)]
    assert not set(asked) & set(SYNONYMS)
    function_words = {"what", "which", "name", "has", "have", "do", "is", "the", "of", "and"}
    assert set(asked) & passage_words <= function_words
    trained = "".join(step.query.lower() for plan in paraphrased.plans["train"] for step in plan.steps)
    trained += " ".join(plan.question.text.lower() for plan in paraphrased.plans["train"])
    assert all(synonym in trained for synonym in (*lexicon.syllable.values(), *lexicon.word.values()))


def test_bm25_finds_plain_questions_and_not_paraphrased_ones(plain: World, paraphrased: World) -> None:
    assert _recall(plain, "dev") >= 0.95
    assert _recall(paraphrased, "dev") <= 0.30


def test_bm25_finds_what_a_demonstrator_searches_for(plain: World) -> None:
    index = _index(plain)
    searches = [
        (step.query, title)
        for plan in plain.plans["dev"]
        for step, title in zip(plan.steps, plan.question.supporting_titles, strict=True)
    ]
    assert sum(index.top(query, 1) == [title] for query, title in searches) >= 0.98 * len(searches)


def test_lazy_plans_stop_early_and_answer_what_they_found(plain: World) -> None:
    plan = next(p for p in plain.plans["train"] if p.question.kind == "three_hop")
    short = lazy(plan, 1)
    assert (short.steps, short.answer, short.question) == (plan.steps[:1], plan.steps[0].found, plan.question)
    assert short.think.endswith(f"is {plan.steps[0].found}.") and "Need" not in short.think
    assert lazy(plan, 3) == plan
    with pytest.raises(ValueError, match="at least one search"):
        lazy(plan, 0)


def test_the_lazy_share_touches_every_kind_with_several_steps(plain: World) -> None:
    whole = [Reciter(plan) for plan in plain.plans["train"]]
    assert with_lazy_share(whole, 0.0, 0) == whole
    counts = lazy_counts(whole, with_lazy_share(whole, 1.0, 0))
    assert all(made == (0 if kind == "one_hop" else total) for kind, (made, total) in counts.items())
    assert len(counts) == 5
    chains = with_lazy_share(whole, 0.5, 0, CHAIN_KINDS)
    shares = {kind: made / total for kind, (made, total) in lazy_counts(whole, chains).items()}
    assert all(0.3 < share < 0.7 if kind in CHAIN_KINDS else share == 0 for kind, share in shares.items())


@given(st.integers(0, 10**9), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_names_are_unique_and_aliases_translate_them_one_to_one(seed: int, length: int) -> None:
    names = draw_names(50, length, seed, {"bada"})
    lexicon = Lexicon.draw(seed)
    aliases = {lexicon.alias(name) for name in names}
    assert len(set(names)) == len(aliases) == 50
    assert not aliases & set(names)
    assert all(len(split_name(name)) == length and "".join(split_name(name)) == name.lower() for name in names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"syllables": 2, "films": 30_000}, "only 19600 of 2 syllables exist"),
        ({"countries": 300}, "every country has a capital"),
        ({"films": 2}, "leave none for the dev split"),
        ({"dev": 100_000}, "the dev split is too small"),
    ],
)
def test_impossible_sizes_are_one_clear_line(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        generate_world(ALL.model_copy(update=change))
    assert caught.value.hint and "\n" not in str(caught.value)


def test_weights_choose_the_kinds() -> None:
    mix = KindMix(one_hop=0, two_hop=0, three_hop=1, comparison=0, yes_no=0)
    world = generate_world(ALL.model_copy(update={"kinds": mix}))
    assert {plan.question.kind for plan in world.plans["dev"]} == {"three_hop"}
    with pytest.raises(ValueError, match="weight above 0"):
        KindMix(one_hop=0, two_hop=0, three_hop=0, comparison=0, yes_no=0)
