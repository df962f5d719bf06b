"""Entities and relations. Relations stay within a split, so a chain of held-out entities has held-out names only."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from envs.toy_world.config import SPLITS, Split, WorldSettings
from envs.toy_world.lexicon import draw_names
from sleuth.errors import ConfigError

EntityType = Literal["film", "person", "company", "city", "country"]
YEAR = "year"

RELATIONS: Mapping[EntityType, Mapping[str, str]] = {
    "film": {"director": "person", "studio": "company", "release year": YEAR},
    "person": {"birthplace": "city", "birth year": YEAR},
    "company": {"founder": "person", "headquarters": "city"},
    "city": {"country": "country"},
    "country": {"capital": "city"},
}
"""For each type, its relations and the type of their values. Every relation has exactly one value."""


@dataclass(frozen=True, slots=True)
class Entity:
    """``facts`` maps each relation of the type to the name of another entity, or to a year."""

    name: str
    type: EntityType
    split: Split
    facts: Mapping[str, str]


Cast = Mapping[EntityType, Sequence[str]]
"""The names of one split, by type."""


def make_entities(settings: WorldSettings, taken: frozenset[str]) -> dict[str, Entity]:
    """All entities by name, ordered by type and split."""
    entities: dict[str, Entity] = {}
    for split, cast in _cast(settings, taken).items():
        rng = random.Random(f"{settings.seed}/facts/{split}")
        capitals, country_of = _map_of(cast, rng)
        for kind, names in cast.items():
            for name in names:
                facts = {
                    relation: str(rng.randint(settings.first_year, settings.last_year))
                    if target == YEAR
                    else rng.choice(_names_of(cast, target))
                    for relation, target in RELATIONS[kind].items()
                }
                if kind == "city":
                    facts["country"] = country_of[name]
                elif kind == "country":
                    facts["capital"] = capitals[name]
                entities[name] = Entity(name, kind, split, facts)
    return entities


def _cast(settings: WorldSettings, taken: frozenset[str]) -> Mapping[Split, Cast]:
    sizes: dict[EntityType, int] = {
        "film": settings.films,
        "person": settings.people,
        "company": settings.companies,
        "city": settings.cities,
        "country": settings.countries,
    }
    names = iter(draw_names(sum(sizes.values()), settings.syllables, settings.seed, taken))
    casts: dict[Split, dict[EntityType, list[str]]] = {split: {} for split in SPLITS}
    for kind, size in sizes.items():
        held_out = {"dev": round(size * settings.dev_share), "test": round(size * settings.test_share)}
        parts = {"train": size - sum(held_out.values()), **held_out}
        for split in SPLITS:
            if parts[split] < 1:
                raise ConfigError(
                    f"{size} of type {kind} leave none for the {split} split", "make more of them, or change the shares"
                )
            casts[split][kind] = [next(names) for _ in range(parts[split])]
    for split, cast in casts.items():
        if len(cast["city"]) < len(cast["country"]):
            raise ConfigError(
                f"the {split} split has {len(cast['country'])} countries but {len(cast['city'])} cities, "
                "and every country has a capital",
                "make at least as many cities as countries",
            )
    return casts


def _map_of(cast: Cast, rng: random.Random) -> tuple[dict[str, str], dict[str, str]]:
    """The capital of each country, and the country of each city; a capital lies in its country."""
    countries, cities = list(cast["country"]), list(cast["city"])
    capitals = dict(zip(countries, cities, strict=False))
    country_of = {city: country for country, city in capitals.items()}
    country_of |= {city: rng.choice(countries) for city in cities[len(countries) :]}
    return capitals, country_of


def _names_of(cast: Cast, kind: str) -> Sequence[str]:
    return next(names for type_, names in cast.items() if type_ == kind)
