"""What is written about: passages of a corpus, rows, or nothing but numbers, in an order drawn by seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retrieval.passages import content_key
from retrieval.training.rows import load_rows, read_passages
from sleuth.errors import DataError
from sleuth.evidence import parent_id
from sleuth.seeding import derive_seed
from sleuth.types import Passage
from workflows.synthesis.config import PassageSettings, SynthesisSettings
from workflows.synthesis.filters.texts import count_words
from workflows.synthesis.writing import Unit


@dataclass(frozen=True, slots=True)
class HeldOutGolds:
    """Passages that are gold for dev or test in the judgements beside a corpus, and their copies under other ids."""

    ids: frozenset[str] = frozenset()
    contents: frozenset[str] = frozenset()

    def __contains__(self, passage: object) -> bool:
        return isinstance(passage, Passage) and (
            parent_id(passage.id) in self.ids or content_key(passage) in self.contents
        )


def units_of(settings: SynthesisSettings, held: HeldOutGolds) -> tuple[list[Unit], dict[str, int]]:
    """The units in order, and what was left out by reason. A larger ``limit`` goes on where a smaller one ends.

    ``held``: passages that are not written about.
    Memory is that of the chosen passages, whatever the size of the corpus.
    """
    needs = settings.recipe.needs
    if needs == "rows":
        rows = load_rows(settings.data)
        names = [f"{row.source}/{row.id}" if row.source else row.id for row in rows]
        units = [Unit(name, row=row) for name, row in zip(_apart(names), rows, strict=True)]
        random.Random(derive_seed(settings.seed, "units")).shuffle(units)
        return units[: settings.limit], {}
    if needs == "nothing":
        return [Unit(str(number)) for number in range(settings.limit or 0)], {}
    assert settings.corpus is not None
    return _of_passages(settings, settings.corpus, held)


def _of_passages(settings: SynthesisSettings, corpus: str, held: HeldOutGolds) -> tuple[list[Unit], dict[str, int]]:
    left_out = {"gold for a held-out question": 0, "too short": 0, "too long": 0}
    places: list[int] = []
    for place, passage in enumerate(read_passages(corpus)):
        fault = _fault(passage, settings.passages, held)
        if fault is None:
            places.append(place)
        else:
            left_out[fault] += 1
    if not places:
        raise DataError(f"no passage of {corpus} is fit to be written about", "see passages.min_words and held_out")
    random.Random(derive_seed(settings.seed, "units")).shuffle(places)
    repeats = int(getattr(settings.recipe, "per_passage", 1))
    wanted = None if settings.limit is None else -(-settings.limit // repeats)
    chosen = {place: order for order, place in enumerate(places[:wanted])}
    found: list[Passage | None] = [None] * len(chosen)
    for place, passage in enumerate(read_passages(corpus)):
        if place in chosen:
            found[chosen[place]] = passage
    units = [
        Unit(passage.id if repeats == 1 else f"{passage.id}#{number}", passage)
        for passage in found
        if passage is not None
        for number in range(repeats)
    ]
    return _unique(units)[: settings.limit], {reason: count for reason, count in left_out.items() if count}


def held_out_golds(settings: SynthesisSettings) -> HeldOutGolds:
    """Those of the corpus; none where there is no corpus or ``passages.held_out`` keeps them."""
    from workflows.synthesis.filters.held_out import beside

    if settings.corpus is None or settings.passages.held_out:
        return HeldOutGolds()
    ids = frozenset(parent_id(name) for one in beside(Path(settings.corpus)) for name in one.golds)
    passages = read_passages(settings.corpus) if ids else ()
    return HeldOutGolds(ids, frozenset(content_key(one) for one in passages if parent_id(one.id) in ids))


def _fault(passage: Passage, chosen: PassageSettings, held: HeldOutGolds) -> str | None:
    if passage in held:
        return "gold for a held-out question"
    words = count_words(passage.text)
    if words < chosen.min_words:
        return "too short"
    return "too long" if chosen.max_words is not None and words > chosen.max_words else None


def _unique(units: Sequence[Unit]) -> list[Unit]:
    """Units with different ids: the second passage with an id is another unit."""
    names = _apart([unit.id for unit in units])
    return [Unit(name, unit.passage, unit.row) for name, unit in zip(names, units, strict=True)]


def _apart(names: Sequence[str]) -> Iterator[str]:
    """Different names, each a function of those before it; a number may make one that is there already."""
    seen: dict[str, int] = {}
    taken: set[str] = set()
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        apart = name if seen[name] == 1 else f"{name}~{seen[name]}"
        while apart in taken:
            seen[name] += 1
            apart = f"{name}~{seen[name]}"
        taken.add(apart)
        yield apart
