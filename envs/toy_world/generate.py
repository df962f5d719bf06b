"""Generates the made-up world from its settings: passages, questions and demonstrations."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from envs.toy_world.config import SPLITS, Split, WorldSettings
from envs.toy_world.facts import Entity, make_entities
from envs.toy_world.lexicon import Lexicon
from envs.toy_world.questions import draw_cases, put
from envs.toy_world.wordings import PASSAGES, passage_text, synonym_words, template_words, vocabulary
from sleuth.types import Passage, Plan


@dataclass(frozen=True, slots=True)
class World:
    """``plans`` has the questions of each split, each with a perfect demonstration."""

    settings: WorldSettings
    lexicon: Lexicon
    entities: Mapping[str, Entity]
    passages: Sequence[Passage]
    plans: Mapping[Split, Sequence[Plan]]
    vocabulary: Sequence[str]


def generate_world(settings: WorldSettings) -> World:
    """Generate the world: the same settings give the same world on every machine.

    Raises ConfigError if names run out or a split is too small for its questions.
    """
    lexicon = Lexicon.draw(settings.seed)
    entities = make_entities(settings, frozenset(word.lower() for word in template_words() | synonym_words()))
    return World(
        settings,
        lexicon,
        entities,
        _passages(entities, settings.seed),
        {split: _plans(settings, entities, lexicon, split) for split in SPLITS},
        vocabulary(settings),
    )


def _passages(entities: Mapping[str, Entity], seed: int) -> list[Passage]:
    """One passage per entity, in a seeded order that reveals nothing about type or split."""
    rng = random.Random(f"{seed}/passages")
    texts = [
        (name, passage_text(entity, rng.randrange(len(PASSAGES[entity.type])))) for name, entity in entities.items()
    ]
    rng.shuffle(texts)
    return [Passage(f"p{number}", title, text) for number, (title, text) in enumerate(texts)]


def _plans(settings: WorldSettings, entities: Mapping[str, Entity], lexicon: Lexicon, split: Split) -> list[Plan]:
    count: int = getattr(settings, split)
    rng = random.Random(f"{settings.seed}/wordings/{split}")
    plans = []
    for number, case in enumerate(draw_cases(settings, entities, split, count)):
        wording, paraphrased = rng.randrange(1000), rng.random() < settings.paraphrase
        plans.append(put(case, entities, lexicon if paraphrased else None, wording, f"{split}-{number}"))
    return plans
