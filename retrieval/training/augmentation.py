"""Queries and labels for a student that learns from several teachers: DRAGON (Lin et al. 2023).

Queries are those of the data, further ones without judgements, and crops of passages. Each teacher ranks the passages
for every query. Whenever a query is trained on, one of the teachers so far is drawn; its best hits hold the positive
and hits further down the negatives (section 3 of the paper). Progressive stages add one teacher at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import fmean

from retrieval.passages import content_key
from retrieval.size import size_of
from retrieval.training.augmentation_config import AugmentationSettings
from retrieval.training.config import SourceSettings
from retrieval.training.crops import crop_passages
from retrieval.training.labels import Ranking, asked
from retrieval.training.row import Labels, TrainingRow
from retrieval.training.rows import load_rows, read_passages
from retrieval.training.sampling import same_as
from sleuth.errors import ConfigError, DataError
from sleuth.protocols import Retriever
from sleuth.rows import read_rows
from sleuth.types import Hit, Passage

CROP = "crop-"
"""How ids of crops begin."""


def queries_to_label(data: Sequence[SourceSettings], settings: AugmentationSettings, seed: int) -> list[TrainingRow]:
    """The rows of ``data``, real queries without golds, and crops, whose gold is the passage that they are from."""
    rows = load_rows(data) if data else []
    for path in settings.queries:
        rows += unjudged(path)
    if settings.crops:
        cut = crop_passages(read_passages(settings.passages), settings.crops.count, settings.crops.words, seed=seed)
        rows += [TrainingRow(f"{CROP}{crop.passage.id}", crop.text, (crop.passage,), source="crops") for crop in cut]
    if not rows:
        raise DataError(
            f"no passage of {settings.passages} is long enough for a crop", "lower augmentation.crops.words"
        )
    return rows


def unjudged(path: str) -> list[TrainingRow]:
    """Queries without golds, of a file in any of the layouts of questions."""
    rows = []
    for row in read_rows(path):
        identifier = next((row.fields[name] for name in ("_id", "id", "query_id") if name in row.fields), row.number)
        rows.append(TrainingRow(f"{path}-{identifier}", row.text("text", "question", "query"), (), source=path))
    return rows


def check_size(teacher: Retriever, name: str, settings: AugmentationSettings) -> None:
    """Raise ConfigError where ``teacher`` has fewer passages than ranks are read."""
    size, last = size_of(teacher), settings.negative_ranks[1]
    if size is not None and size < last:
        raise ConfigError(
            f"{name} has {size} passages, but augmentation.negative_ranks end at {last}",
            "lower negative_ranks and positive_ranks, or give more passages",
        )


def check_passages(found: Sequence[Sequence[Hit]], name: str, corpus: str) -> None:
    """Raise DataError where a hit is not a passage of ``corpus``, with the same id and content."""
    wanted = {hit.passage.id: hit.passage for hits in found for hit in hits}
    hint = "all teachers must search the passages of augmentation.corpus"
    for passage in read_passages(corpus):
        hit = wanted.pop(passage.id, None)
        if hit is not None and content_key(hit) != content_key(passage):
            raise DataError(f"passage {passage.id} of {name} has another text than that of {corpus}", hint)
        if not wanted:
            return
    if wanted:
        raise DataError(f"{name} finds the passage {next(iter(wanted))}, which {corpus} lacks", hint)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a teacher agrees with golds: the mean share of a query's golds among its best hits.

    Golds that are not in the corpus do not count; None where no query has any. Also how many queries it found nothing
    for, and for how many its hits end before the ranks of negatives begin.
    """

    judged: float | None
    crops: float | None
    without_hits: int
    without_negatives: int

    def figures(self) -> dict[str, float]:
        """What is known, by name."""
        recalls = {"gold_recall": self.judged, "crop_recall": self.crops}
        known = {name: value for name, value in recalls.items() if value is not None}
        return known | {"without_hits": self.without_hits, "without_negatives": self.without_negatives}

    def __str__(self) -> str:
        told = {"golds of queries": self.judged, "passages of crops": self.crops}
        found = [f"{value:.3f} of the {what}" for what, value in told.items() if value is not None]
        counts = {"nothing": self.without_hits, "no negatives": self.without_negatives}
        lost = [f"; {what} for {count} queries" for what, count in counts.items() if count]
        return (f"{' and '.join(found)} among its best hits" if found else "no golds to compare with") + "".join(lost)


def agreement(rows: Sequence[TrainingRow], ranked: Mapping[str, Ranking], settings: AugmentationSettings) -> Agreement:
    copies = _copies([p for row in rows for p in row.positives], read_passages(settings.passages))
    shares: dict[bool, list[float]] = {True: [], False: []}
    for row in rows:
        best = set(ranked[asked(row)][: settings.positive_ranks])
        golds = [copies[content_key(gold)] for gold in row.positives if content_key(gold) in copies]
        if golds:
            shares[row.id.startswith(CROP)].append(fmean(bool(ids & best) for ids in golds))
    means = {crops: fmean(values) if values else None for crops, values in shares.items()}
    lengths = [len(ranked[query]) for query in dict.fromkeys(map(asked, rows))]
    short = sum(length < settings.negative_ranks[0] for length in lengths)
    return Agreement(means[False], means[True], lengths.count(0), short)


def augment(
    rows: Sequence[TrainingRow],
    teachers: Sequence[Mapping[str, Ranking]],
    settings: AugmentationSettings,
) -> list[TrainingRow]:
    """The rows with the labels of ``teachers``, which rank passages of the corpus by query.

    Best hits of any teacher are positives of the row, and no teacher's negatives. Rows of which no teacher says
    anything keep their golds; those without golds are left out.
    """
    wanted = {identifier for ranked in teachers for row in rows for identifier in _read(ranked[asked(row)], settings)}
    known = {p.id: p for p in read_passages(settings.passages) if p.id in wanted}
    if lost := wanted - known.keys():
        raise DataError(
            f"teachers found the passage {min(lost)}, which {settings.passages} lacks",
            "all teachers must search the passages of augmentation.corpus",
        )
    found = (_augmented(row, [ranked[asked(row)] for ranked in teachers], known, settings) for row in rows)
    return [row for row in found if row is not None]


def _augmented(
    row: TrainingRow, ranked: Sequence[Ranking], known: Mapping[str, Passage], settings: AugmentationSettings
) -> TrainingRow | None:
    best = [tuple(known[i] for i in ids[: settings.positive_ranks]) for ids in ranked if ids]
    positives = tuple(dict.fromkeys(chain(row.positives, *best)))
    if not positives:
        return None
    first, last = settings.negative_ranks
    is_positive = same_as(positives)
    worse = [tuple(p for p in (known[i] for i in ids[first - 1 : last]) if not is_positive(p)) for ids in ranked if ids]
    every = tuple(dict.fromkeys(chain(*worse)))
    golds = settings.golds if row.positives else 0.0
    share = (1.0 - golds) / max(len(best), 1)
    labels = [Labels(top, low, share) for top, low in zip(best, worse, strict=True) if share]
    if row.positives and (golds or not best):
        labels.append(Labels(row.positives, every, golds or 1.0))
    return replace(row, positives=positives, negatives=every, scores={}, labels=tuple(labels))


def _read(ids: Ranking, settings: AugmentationSettings) -> Ranking:
    """Those of a ranking that labels are made of."""
    first, last = settings.negative_ranks
    return (*ids[: settings.positive_ranks], *ids[first - 1 : last])


def _copies(golds: Sequence[Passage], passages: Iterable[Passage]) -> dict[str, set[str]]:
    """By the content of each gold that ``passages`` have, the ids of its copies there, by id or by content."""
    by_id: dict[str, set[str]] = {}
    for gold in golds:
        by_id.setdefault(gold.id, set()).add(content_key(gold))
    contents = {content for some in by_id.values() for content in some}
    found: dict[str, set[str]] = {}
    for passage in passages:
        content = content_key(passage)
        for key in by_id.get(passage.id, set()) | (contents & {content}):
            found.setdefault(key, set()).add(passage.id)
    return found
