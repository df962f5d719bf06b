"""The order in which training questions are asked: several files mixed by weight, fixed by the seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sleuth.seeding import derive_seed


def mixture(sizes: Sequence[int], weights: Sequence[float], count: int, seed: int) -> list[int]:
    """``count`` positions in the concatenation of sources of these ``sizes``.

    Each draw picks a source by weight; each source is read in shuffled epochs, so no question repeats before
    all others of its source have been used.
    """
    rng = np.random.default_rng(derive_seed(seed, "mixture"))
    probabilities = np.asarray(weights, dtype=float) / sum(weights)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    streams = [_epochs(size, derive_seed(seed, "source", index)) for index, size in enumerate(sizes)]
    return [
        int(offsets[source]) + next(streams[source]) for source in rng.choice(len(sizes), size=count, p=probabilities)
    ]


def spare_question(sizes: Sequence[int], weights: Sequence[float]) -> Callable[[int], int]:
    """Draws one more position with the weights of ``mixture``, determined by the given seed."""
    probabilities = np.asarray(weights, dtype=float) / sum(weights)
    offsets = np.concatenate([[0], np.cumsum(sizes)])

    def draw(seed: int) -> int:
        rng = np.random.default_rng(seed)
        source = int(rng.choice(len(sizes), p=probabilities))
        return int(offsets[source] + rng.integers(sizes[source]))

    return draw


def _epochs(size: int, seed: int) -> Iterator[int]:
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.permutation(size).tolist()
