"""Names and synonyms, all drawn from the seed.

A name is a sequence of syllables, and every syllable has one synonym; the alias of a name is its syllables
translated one by one. A model that has seen all syllables can therefore match an alias to an unseen name,
while comparing letters does not help. Plain syllables start with a single letter, synonyms with a consonant
cluster, and none starts with the closing ``x``, so greedy splitting of a name is unambiguous.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sleuth.errors import ConfigError

VOWELS = "aeiou"
CODAS = ("", "x")
PLAIN_ONSETS = tuple("bdfgklmnprstvz")
SYNONYM_ONSETS = ("bl", "br", "ch", "dr", "fl", "gr", "kr", "pl", "pr", "sh", "sk", "st", "th", "tr")

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "director": ("helmer", "metteur", "cineast"),
    "studio": ("atelier", "backer", "outfit"),
    "release": ("premiere", "debut", "launch"),
    "year": ("vintage", "anno", "twelvemonth"),
    "birthplace": ("hometown", "cradle", "origin"),
    "birth": ("nativity", "arrival", "delivery"),
    "country": ("nation", "realm", "homeland"),
    "founder": ("creator", "originator", "initiator"),
    "headquarters": ("base", "seat", "domicile"),
    "capital": ("metropolis", "chief", "principal"),
    "earlier": ("older", "prior", "former"),
    "later": ("newer", "latter", "subsequent"),
    "same": ("identical", "equal", "common"),
}
"""Question words that a paraphrase replaces, with candidates from which the seed chooses."""


def syllables(onsets: Collection[str]) -> list[str]:
    return ["".join(parts) for parts in itertools.product(onsets, VOWELS, CODAS)]


@dataclass(frozen=True, slots=True)
class Lexicon:
    """One synonym for every plain syllable and for every word in SYNONYMS."""

    syllable: Mapping[str, str]
    word: Mapping[str, str]

    @classmethod
    def draw(cls, seed: int) -> Lexicon:
        rng = random.Random(f"{seed}/lexicon")
        translated = syllables(SYNONYM_ONSETS)
        rng.shuffle(translated)
        words = {word: rng.choice(choices) for word, choices in SYNONYMS.items()}
        return cls(dict(zip(syllables(PLAIN_ONSETS), translated, strict=True)), words)

    def alias(self, name: str) -> str:
        """The alias of an entity's name: each syllable's synonym, capitalised like a name."""
        return "".join(self.syllable[part] for part in split_name(name)).capitalize()

    def reword(self, text: str) -> str:
        """``text`` with every word that has a synonym replaced by it."""
        return " ".join(self.word.get(word, word) for word in text.split(" "))


def split_name(name: str) -> list[str]:
    """The plain syllables of ``name``, in lower case."""
    parts: list[str] = []
    for letter in name.lower():
        if letter in PLAIN_ONSETS:
            parts.append(letter)
        else:
            parts[-1] += letter
    return parts


def draw_names(count: int, length: int, seed: int, taken: Collection[str]) -> list[str]:
    """``count`` different names of ``length`` syllables, none of them in ``taken``.

    Raises ConfigError if there are not enough.
    """
    alphabet = syllables(PLAIN_ONSETS)
    exist = len(alphabet) ** length
    wanted = count + len(taken)
    if wanted > exist:
        raise ConfigError(
            f"the world needs {count} names, but only {exist} of {length} syllables exist",
            "raise syllables, or make the world smaller",
        )
    codes = random.Random(f"{seed}/names").sample(range(exist), wanted)
    names = (_spell(code, alphabet, length) for code in codes)
    return [name.capitalize() for name in names if name not in taken][:count]


def _spell(code: int, alphabet: list[str], length: int) -> str:
    parts = []
    for _ in range(length):
        code, digit = divmod(code, len(alphabet))
        parts.append(alphabet[digit])
    return "".join(parts)
