"""Every sentence of the made-up world: passages, questions, thoughts. The vocabulary is closed over these."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from envs.toy_world.config import WorldSettings
from envs.toy_world.facts import Entity, EntityType
from envs.toy_world.lexicon import PLAIN_ONSETS, SYNONYM_ONSETS, SYNONYMS, syllables

PASSAGES: Mapping[EntityType, Sequence[str]] = {
    "film": (
        "{name} is a {release year} film directed by {director} for {studio}.",
        "The film {name} by director {director} was released by the studio {studio} in {release year}.",
        "{director} was the director of {name}, a film of {studio} from {release year}.",
    ),
    "person": (
        "{name} was born in {birthplace} in {birth year}.",
        "Born in {birth year}, {name} comes from {birthplace}.",
        "{birthplace} is the birthplace of {name}, born in {birth year}.",
    ),
    "company": (
        "{name} is a company from {headquarters} with founder {founder}.",
        "{founder} founded {name}, a company with headquarters in {headquarters}.",
        "The company {name} was founded by {founder} in {headquarters}.",
    ),
    "city": (
        "{name} is a city in {country}.",
        "The city of {name} lies in the country {country}.",
        "{country} is the country of the city {name}.",
    ),
    "country": (
        "{name} is a country with the capital {capital}.",
        "The capital of {name} is the city {capital}.",
        "{capital} is the capital of the country {name}.",
    ),
}

ASK: Mapping[str, Sequence[str]] = {
    "chain": ("What is the {phrase}?", "Name the {phrase}."),
    "comparison": (
        "Which of {a} and {b} has the {direction} {relation}?",
        "Of {a} and {b}, which has the {direction} {relation}?",
    ),
    "yes_no": ("Do {a} and {b} have the {same} {relation}?", "Is the {relation} of {a} and {b} the {same}?"),
}

NEED = "Need the {relation}."
FOUND = "The {relation} is {value}."
COMPARED = "So earlier {earlier}, later {later}."
SAME = "So {verdict}."
VERDICTS = {"yes": "same", "no": "other"}

_WORD = re.compile(r"\{[^}]*\}|\w+|[^\w\s]")


def passage_text(entity: Entity, wording: int) -> str:
    return PASSAGES[entity.type][wording].format_map({"name": entity.name, **entity.facts})


def template_words() -> frozenset[str]:
    """Every word of every possible sentence, without names and years."""
    sentences = [text for texts in (*PASSAGES.values(), *ASK.values()) for text in texts]
    sentences += [NEED, FOUND, COMPARED, SAME, " ".join((*VERDICTS, *VERDICTS.values()))]
    words = {word for text in sentences for word in _WORD.findall(text) if not word.startswith("{")}
    return frozenset(words | set(SYNONYMS) | {"of", "the"})


def synonym_words() -> frozenset[str]:
    return frozenset(word for words in SYNONYMS.values() for word in words)


def vocabulary(settings: WorldSettings) -> list[str]:
    """All word pieces of the world's texts; ``##`` marks a continuation within a word.

    A year is a decade and a digit. Synonyms are left out if the settings never use them.
    """
    words = set(template_words())
    onsets: tuple[str, ...] = PLAIN_ONSETS
    if settings.paraphrase > 0:
        words |= synonym_words()
        onsets += SYNONYM_ONSETS
    decades = {str(year)[:3] for year in range(settings.first_year, settings.last_year + 1)}
    parts = [*syllables(onsets), *"0123456789"]
    return sorted(words | decades) + [part.capitalize() for part in parts] + [f"##{part}" for part in parts]
