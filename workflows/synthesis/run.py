"""Writes chunk after chunk: scripts of a recipe, then filters, then one file that says what came of it.

A chunk that is done is read, not written again; of one that is not, every reply is in its journal. So a run that was
killed goes on where it was, and with the same seeds ends with the same rows.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from retrieval.config import Progress
from retrieval.open import open_retriever
from retrieval.training.rows import row_of, tevatron_row
from sleuth.artifacts import atomic_write
from sleuth.layout import read_record, write_record
from sleuth.protocols import Retriever
from sleuth.seeding import derive_seed
from workflows.synthesis.config import SynthesisSettings
from workflows.synthesis.desk import Cost, Desk, Journal
from workflows.synthesis.filters.base import Bench, Filter
from workflows.synthesis.layout import ChunkLayout, SynthesisLayout
from workflows.synthesis.script import Rejected, play
from workflows.synthesis.templates import load_template
from workflows.synthesis.units import units_of
from workflows.synthesis.writing import Outcome, Reject, Style, Unit, Writing, Written

log = logging.getLogger("sleuth.synthesize")

Counting = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Shows a count under a title; yields a callback for (done, total)."""
ENOUGH = "enough rows are kept"


@dataclass(slots=True)
class Chunk:
    """What came of some units. ``passed``: rows that reached each filter and that it let through, in order."""

    kept: list[Written]
    rejects: list[Reject]
    passed: list[tuple[int, int]]
    units: int
    cost: Cost
    seconds: float


@dataclass(slots=True)
class Progressing:
    """How a run shows what it does."""

    counting: Counting
    progress: Progress


@dataclass(slots=True)
class Totals:
    units: int = 0
    written: int = 0
    kept: int = 0
    seconds: float = 0.0
    cost: Cost = field(default_factory=Cost)
    by_filter: list[list[int]] = field(default_factory=list)
    rejects: Counter[tuple[str, str]] = field(default_factory=Counter)
    other_positive: int = 0
    """Rows whose positive is another passage than the seed."""

    def add(self, chunk: Chunk) -> None:
        self.units += chunk.units
        self.written += len(chunk.kept) + sum(reject.by != "writing" for reject in chunk.rejects)
        self.kept += len(chunk.kept)
        self.seconds += chunk.seconds
        self.cost = self.cost + chunk.cost
        self.by_filter = self.by_filter or [[0, 0] for _ in chunk.passed]
        for total, (came, went) in zip(self.by_filter, chunk.passed, strict=True):
            total[0] += came
            total[1] += went
        self.rejects.update((reject.by, reject.reason) for reject in chunk.rejects)
        self.other_positive += sum(bool(row.made.get("other_positive")) for row in chunk.kept)


def synthesize(settings: SynthesisSettings, layout: SynthesisLayout, show: Progressing) -> dict[str, Any]:
    """Write until there are enough rows or no more units; returns the record of the run, which is also on disk."""
    writer = settings.writer.open()
    units, left_out = units_of(settings)
    desk = Desk(writer, Journal(None), _retriever_of(settings, show.progress), settings.max_failed)
    filters = _open_filters(settings, desk, show.progress)
    totals, done = Totals(), list[ChunkLayout]()
    with show.counting("rows") as tell:
        for number, some in enumerate(_chunks(units, settings.chunk)):
            if settings.keep is not None and totals.kept >= settings.keep:
                break
            place = layout.chunk(number)
            chunk = read_chunk(place)
            if chunk is None or chunk.units != len(some):  # the last one grows with the limit
                chunk = _write_chunk(settings, some, place, desk, filters)
                save_chunk(chunk, place)
            for one in filters.values():
                one.keep(chunk.kept)
            totals.add(chunk)
            done.append(place)
            tell(totals.kept if settings.keep else totals.units, settings.keep or len(units))
    record = _record(settings, totals, filters, left_out, len(units), writer.name)
    _publish(settings, layout, record, done)
    return record


def _write_chunk(
    settings: SynthesisSettings, units: Sequence[Unit], place: ChunkLayout, desk: Desk, filters: Mapping[str, Filter]
) -> Chunk:
    started = time.monotonic()
    desk.journal = Journal(place.calls)
    try:
        written, rejects = _written(settings, units, desk)
        kept, dropped, passed = _filtered(written, filters)
        cost = desk.journal.cost
    finally:
        desk.journal.close()
    return Chunk(kept, rejects + dropped, passed, len(units), cost, time.monotonic() - started)


def _written(settings: SynthesisSettings, units: Sequence[Unit], desk: Desk) -> tuple[list[Written], list[Reject]]:
    recipe = settings.recipe.open()
    template = load_template(settings.recipe.template_name, recipe.steps, settings.recipe.choices)
    style, scripts = style_of(settings), {}
    for unit in units:
        writing = Writing(unit, template, style, settings.seed, desk.writer.reserved)
        draws = template.draw(writing.rng)
        scripts[unit.id] = recipe.write(Writing(unit, template, style, settings.seed, desk.writer.reserved, draws))

    def failed(verdict: Rejected) -> list[Outcome]:
        return [Reject("", "writing", verdict.reason, verdict.text)]

    outcomes = play(scripts, desk, failed)
    written = [one for some in outcomes.values() for one in some if isinstance(one, Written)]
    rejects = [
        Reject(one.id or unit, one.by, one.reason, one.text)
        for unit, some in outcomes.items()
        for one in some
        if isinstance(one, Reject)
    ]
    return written, rejects


def _filtered(
    rows: Sequence[Written], filters: Mapping[str, Filter]
) -> tuple[list[Written], list[Reject], list[tuple[int, int]]]:
    kept, rejects, passed = list(rows), list[Reject](), list[tuple[int, int]]()
    for name, one in filters.items():
        verdicts = one.judge(kept)
        rejects += [
            Reject(row.row.id, name, reason, row=row.row)
            for row, reason in zip(kept, verdicts, strict=True)
            if reason is not None
        ]
        left = [row for row, reason in zip(kept, verdicts, strict=True) if reason is None]
        passed.append((len(kept), len(left)))
        kept = left
    return kept, rejects, passed


def style_of(settings: SynthesisSettings) -> Style:
    sampling = settings.sampling
    return Style(sampling.temperature, sampling.top_p, settings.attempts, settings.passages.show_words)


def _open_filters(settings: SynthesisSettings, desk: Desk, progress: Progress) -> dict[str, Filter]:
    """By name, with a number where a kind occurs twice."""
    corpus = None if settings.corpus is None else Path(settings.corpus)
    seed = derive_seed(settings.seed, "filters")
    bench = Bench(desk, desk.writer.reserved, style_of(settings), seed, corpus, progress)
    kinds = [chosen.kind for chosen in settings.filters]
    names = [kind if kinds.count(kind) == 1 else f"{kind}-{i}" for i, kind in enumerate(kinds, start=1)]
    return {name: chosen.open(bench) for name, chosen in zip(names, settings.filters, strict=True)}


def _retriever_of(settings: SynthesisSettings, progress: Progress) -> Callable[[], Retriever] | None:
    chosen = getattr(settings.recipe, "retriever", None)
    if chosen is None:
        return None
    return functools.cache(lambda: open_retriever(chosen, cached=False, progress=progress))


def _chunks(units: Sequence[Unit], size: int) -> Iterator[Sequence[Unit]]:
    return (units[start : start + size] for start in range(0, len(units), size))


def _record(
    settings: SynthesisSettings,
    totals: Totals,
    filters: Mapping[str, Filter],
    left_out: Mapping[str, int],
    units: int,
    writer: str,
) -> dict[str, Any]:
    """Plain values: what was asked, written, dropped by whom and why, kept, and what it cost."""
    kept = totals.kept if settings.keep is None else min(totals.kept, settings.keep)
    passed = zip(filters.items(), totals.by_filter or [[0, 0]] * len(filters), strict=True)
    return {
        "writer": writer,
        "recipe": settings.recipe.kind,
        "units": {"written_about": totals.units, "chosen": units, "left_out": dict(left_out)},
        "written": totals.written,
        "kept": kept,
        "not_needed": totals.kept - kept,
        "other_positive": totals.other_positive,
        "filters": {name: {"in": came, "out": went, **one.about()} for (name, one), (came, went) in passed},
        "rejects": [
            {"by": by, "reason": reason, "count": count} for (by, reason), count in totals.rejects.most_common()
        ],
        "cost": asdict(totals.cost),
        "seconds": round(totals.seconds, 1),
    }


def _publish(
    settings: SynthesisSettings, layout: SynthesisLayout, record: Mapping[str, Any], done: Sequence[ChunkLayout]
) -> None:
    """Rows, rejects, record and page, each written whole."""
    from workflows.synthesis.page import make_page

    rows, rejects, room = list[str](), list[str](), record["kept"]
    for chunk in filter(None, map(read_chunk, done)):
        for written in chunk.kept:
            if len(rows) < room:
                rows.append(_line(plain_row(written)))
            else:
                rejects.append(_line(plain_reject(Reject(written.row.id, "keep", ENOUGH, row=written.row))))
        rejects += [_line(plain_reject(reject)) for reject in chunk.rejects]
    atomic_write(layout.rows, "".join(rows))
    atomic_write(layout.rejects, "".join(rejects))
    write_record(layout.record, record)
    atomic_write(layout.page, make_page(layout, record, settings))


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"


def plain_row(written: Written) -> dict[str, Any]:
    """A Tevatron row, with how it was made."""
    return {**tevatron_row(written.row), "made": dict(written.made)}


def plain_reject(reject: Reject) -> dict[str, Any]:
    row = {} if reject.row is None else {"row": tevatron_row(reject.row)}
    text = {"text": reject.text} if reject.text else {}
    return {"id": reject.id, "by": reject.by, "reason": reject.reason, **text, **row}


def save_chunk(chunk: Chunk, place: ChunkLayout) -> None:
    write_record(
        place.done,
        {
            "kept": [plain_row(row) for row in chunk.kept],
            "rejects": [plain_reject(reject) for reject in chunk.rejects],
            "passed": chunk.passed,
            "units": chunk.units,
            "cost": asdict(chunk.cost),
            "seconds": chunk.seconds,
        },
    )


def read_chunk(place: ChunkLayout) -> Chunk | None:
    """What came of a chunk; None if it is not done. Raises ArtifactError if its file is damaged."""
    found = read_record(place.done)
    if found is None:
        return None
    return Chunk(
        [Written(row_of(row), row["made"]) for row in found["kept"]],
        [_reject(one) for one in found["rejects"]],
        [(came, went) for came, went in found["passed"]],
        found["units"],
        Cost(**found["cost"]),
        found["seconds"],
    )


def _reject(plain: Mapping[str, Any]) -> Reject:
    row = row_of(plain["row"]) if "row" in plain else None
    return Reject(plain["id"], plain["by"], plain["reason"], plain.get("text", ""), row)
