"""Queries from passages alone: a sentence asks for the passage that it was taken from (inverse cloze task).

Lee, Chang, Toutanova: Latent Retrieval for Weakly Supervised Open Domain Question Answering, ACL 2019. A start where
judged queries are few: what is learned is to match a sentence with its context, not yet a question with its answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

from sleuth.types import Passage

KEEP = 0.1
"""Share of passages that keep their sentence, so that equal words count too; the paper's."""
WORDS = range(6, 41)
"""Words of a sentence that can be a query."""
_END = re.compile(r"(?<=[.!?])\s+(?=[^\sa-z])")


def cloze_pairs(passages: Iterable[Passage], limit: int | None = None, *, seed: int = 0) -> list[tuple[str, Passage]]:
    """A sentence and its passage, mostly without it, under the passage's own id: at most ``limit``, a seeded sample.

    Passages of one sentence give none.
    """
    rng = random.Random(seed)
    kept: list[tuple[str, Passage]] = []
    seen = 0
    for passage in passages:
        pair = _pair(passage, rng)
        if pair is None:
            continue
        seen += 1
        if limit is None or len(kept) < limit:
            kept.append(pair)
        elif (place := rng.randrange(seen)) < limit:  # Vitter's algorithm R: the corpus need not fit into memory
            kept[place] = pair
    return kept


def _pair(passage: Passage, rng: random.Random) -> tuple[str, Passage] | None:
    sentences = _END.split(passage.text.strip())
    askable = [number for number, sentence in enumerate(sentences) if len(sentence.split()) in WORDS]
    if len(sentences) < 2 or not askable:
        return None
    number = rng.choice(askable)
    rest = passage.text if rng.random() < KEEP else " ".join(sentences[:number] + sentences[number + 1 :])
    return sentences[number], Passage(passage.id, passage.title, rest)
