"""Queries from passages alone: a title for its text, or a sentence for the passage that it was taken from.

The latter is the inverse cloze task (Lee, Chang, Toutanova: Latent Retrieval for Weakly Supervised Open Domain Question
Answering, ACL 2019). Useful as a first stage if judged queries are few: it teaches matching a sentence to its context,
not yet a question to its answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import replace

from sleuth.types import Passage

Pair = tuple[str, Passage]
KEEP = 0.1
"""Fraction of passages that keep their sentence, so that word overlap is learnt too; as in the paper."""
WORDS = range(6, 41)
"""Number of words of a sentence that can be a query."""
_END = re.compile(r"(?<=[.!?])\s+(?=[^\sa-z])")


def cloze_pairs(passages: Iterable[Passage], limit: int | None = None, *, seed: int = 0) -> list[Pair]:
    """Pairs of a sentence and its passage, usually with the sentence removed, under the passage's own id.

    At most ``limit``, a seeded sample. Passages of one sentence are skipped.
    """
    rng = random.Random(seed)
    return _some((pair for passage in passages if (pair := _pair(passage, rng)) is not None), limit, rng)


def title_body_pairs(passages: Iterable[Passage], limit: int | None = None, *, seed: int = 0) -> list[Pair]:
    """Pairs of a title and its passage, which loses it (as in CCPairs, Wang et al. 2022); those without are skipped.

    At most ``limit``, a seeded sample.
    """
    titled = (passage for passage in passages if passage.title.strip() and passage.text.strip())
    pairs = ((passage.title.strip(), replace(passage, title="")) for passage in titled)
    return _some(pairs, limit, random.Random(seed))


def _some(pairs: Iterable[Pair], limit: int | None, rng: random.Random) -> list[Pair]:
    """Reservoir sampling (Vitter's R): the corpus need not fit in memory."""
    kept: list[Pair] = []
    for seen, pair in enumerate(pairs, start=1):
        if limit is None or len(kept) < limit:
            kept.append(pair)
        elif (place := rng.randrange(seen)) < limit:
            kept[place] = pair
    return kept


def _pair(passage: Passage, rng: random.Random) -> Pair | None:
    sentences = _END.split(passage.text.strip())
    askable = [number for number, sentence in enumerate(sentences) if len(sentence.split()) in WORDS]
    if len(sentences) < 2 or not askable:
        return None
    number = rng.choice(askable)
    rest = passage.text if rng.random() < KEEP else " ".join(sentences[:number] + sentences[number + 1 :])
    return sentences[number], replace(passage, text=rest)
