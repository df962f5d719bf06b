"""Writes chunk after chunk: scripts of a recipe, then filters, then one file that says what came of it.

A chunk that is done is read, not written again; of one that is not, every reply is in its journal. So a run that was
killed goes on where it was, and with the same seeds ends with the same rows.
"""

from __future__ import annotations

import functools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.writing.asks import Writer
from retrieval.config import Progress
from retrieval.open import open_retriever
from sleuth.artifacts import atomic_write
from sleuth.errors import ConfigError
from sleuth.layout import write_record
from sleuth.protocols import Retriever
from sleuth.seeding import derive_seed
from workflows.synthesis.chunks import Chunk, plain_reject, plain_row, read_chunk, save_chunk
from workflows.synthesis.config import SynthesisSettings
from workflows.synthesis.desk import Desk, weighing
from workflows.synthesis.filters.base import Bench, Filter
from workflows.synthesis.journal import About, Cost, Journal, about
from workflows.synthesis.layout import ChunkLayout, SynthesisLayout
from workflows.synthesis.ngrams import same_words
from workflows.synthesis.script import Rejected, play
from workflows.synthesis.templates import Template, load_template
from workflows.synthesis.units import held_out_golds, units_of
from workflows.synthesis.writing import Outcome, Recipe, Reject, Style, Unit, Writing, Written

log = logging.getLogger("sleuth.synthesize")

Counting = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Shows a count under a title; yields a callback for (done, total)."""
ENOUGH = "enough rows are kept"


@dataclass(slots=True)
class Progressing:
    """How a run shows what it does."""

    counting: Counting
    progress: Progress


@dataclass(frozen=True, slots=True)
class Work:
    """What all chunks have in common."""

    settings: SynthesisSettings
    recipe: Recipe
    template: Template
    desk: Desk
    filters: Mapping[str, Filter]


@dataclass(slots=True)
class Totals:
    units: int = 0
    written: int = 0
    kept: int = 0
    seconds: float = 0.0
    cost: Cost = field(default_factory=Cost)
    by_filter: list[list[int]] = field(default_factory=list)
    rejects: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, chunk: Chunk) -> None:
        self.units += len(chunk.about.units)
        self.written += len(chunk.kept) + sum(reject.by != "writing" for reject in chunk.rejects)
        self.kept += len(chunk.kept)
        self.seconds += chunk.seconds
        self.cost = self.cost + chunk.cost
        self.by_filter = self.by_filter or [[0, 0] for _ in chunk.passed]
        for total, (came, went) in zip(self.by_filter, chunk.passed, strict=True):
            total[0] += came
            total[1] += went
        self.rejects.update((reject.by, reject.reason) for reject in chunk.rejects)


def synthesize(settings: SynthesisSettings, layout: SynthesisLayout, show: Progressing) -> dict[str, Any]:
    """Write until there are enough rows or no more units; returns the record of the run, which is also on disk."""
    recipe = settings.recipe.open()
    template = _template_of(settings, recipe)
    for chosen in settings.filters:
        chosen.check()
    held = held_out_golds(settings)
    units, left_out = units_of(settings, held)
    writer = _open_writer(settings)
    desk = Desk(writer, Journal(None), _retriever_of(settings, show.progress), held, settings.max_failed)
    work = Work(settings, recipe, template, desk, _open_filters(settings, desk, show.progress))
    go_by = {name: one.about() for name, one in work.filters.items()}
    totals, done = Totals(), dict[ChunkLayout, About]()
    with show.counting("rows") as tell:
        for number, some in enumerate(_chunks(units, settings.chunk)):
            if settings.keep is not None and totals.kept >= settings.keep:
                break
            place, of = layout.chunk(number), about(template, some, go_by)
            chunk = read_chunk(place, of)
            if chunk is None:
                chunk = _write_chunk(work, some, of, place)
                save_chunk(chunk, place)
            for one in work.filters.values():
                one.keep(chunk.kept)
            totals.add(chunk)
            done[place] = of
            tell(totals.kept if settings.keep else totals.units, settings.keep or len(units))
    record = _record(work, totals, left_out, len(units))
    return _publish(settings, layout, record, done)


def _template_of(settings: SynthesisSettings, recipe: Recipe) -> Template:
    """The recipe's template. Raises ConfigError, too where the same prompt would be put again for the same reply."""
    chosen = settings.recipe
    template = load_template(chosen.template_name, recipe.steps, chosen.choices, chosen.OFFERED)
    again = next((name for name in ("per_passage", "per_task") if getattr(chosen, name, 1) > 1), None)
    if again and settings.sampling.temperature == 0 and not template.choices:
        raise ConfigError(
            f"at temperature 0 recipe.{again} writes the same row again and again",
            "raise sampling.temperature, or give recipe.choices",
        )
    return template


def _open_writer(settings: SynthesisSettings) -> Writer:
    """Raises ConfigError for one that cannot weigh texts, where that is needed, before it has written any."""
    writer = settings.writer.open()
    if settings.recipe.weighs or any(one.weighs for one in settings.filters):
        weighing(writer).weigh([])
    return writer


def _write_chunk(work: Work, units: Sequence[Unit], of: About, place: ChunkLayout) -> Chunk:
    journal = work.desk.journal = Journal(place.calls, of)
    try:
        written, rejects = _written(work, units)
        kept, dropped, passed = _filtered(written, work.filters)
        return Chunk(of, kept, rejects + dropped, passed, journal.cost, journal.seconds)
    finally:
        journal.close()


def _written(work: Work, units: Sequence[Unit]) -> tuple[list[Written], list[Reject]]:
    settings, writer = work.settings, work.desk.writer
    style = style_of(settings)
    scripts = {
        unit.id: work.recipe.write(Writing(unit, work.template, style, settings.seed, writer.reserved).drawn())
        for unit in units
    }

    def failed(verdict: Rejected) -> list[Outcome]:
        return [Reject("", "writing", verdict.reason, verdict.text)]

    outcomes = play(scripts, work.desk, failed)
    by = {"writer": writer.name, "seed": settings.seed}
    examples = work.template.examples
    written, rejects = list[Written](), list[Reject]()
    for unit, some in outcomes.items():
        for one in some:
            if isinstance(one, Reject):
                rejects.append(replace(one, id=one.id or unit))
            elif any(same_words(one.row.query, example) for example in examples):
                rejects.append(Reject(one.row.id, "writing", "an example of the prompt", written=one))
            else:
                written.append(replace(one, made={**one.made, **by}))
    return written, rejects


def _filtered(
    rows: Sequence[Written], filters: Mapping[str, Filter]
) -> tuple[list[Written], list[Reject], list[tuple[int, int]]]:
    kept, rejects, passed = list(rows), list[Reject](), list[tuple[int, int]]()
    for name, one in filters.items():
        verdicts = one.judge(kept)
        rejects += [
            Reject(row.row.id, name, reason, written=row)
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
    seed, style = derive_seed(settings.seed, "filters"), style_of(settings)
    kinds = [chosen.kind for chosen in settings.filters]
    names = [kind if kinds.count(kind) == 1 else f"{kind}-{i}" for i, kind in enumerate(kinds, start=1)]
    return {
        name: chosen.open(Bench(name, desk, desk.writer.reserved, style, seed, corpus, progress))
        for name, chosen in zip(names, settings.filters, strict=True)
    }


def _retriever_of(settings: SynthesisSettings, progress: Progress) -> Callable[[], Retriever] | None:
    chosen = getattr(settings.recipe, "retriever", None)
    if chosen is None:
        return None
    return functools.cache(lambda: open_retriever(chosen, cached=False, progress=progress))


def _chunks(units: Sequence[Unit], size: int) -> Iterator[Sequence[Unit]]:
    return (units[start : start + size] for start in range(0, len(units), size))


def _record(work: Work, totals: Totals, left_out: Mapping[str, int], units: int) -> dict[str, Any]:
    """Plain values: what was asked, written, dropped by whom and why, kept, and what it cost."""
    settings, filters = work.settings, work.filters
    kept = totals.kept if settings.keep is None else min(totals.kept, settings.keep)
    more = totals.kept - kept
    rejects = totals.rejects + Counter({("keep", ENOUGH): more})
    passed = zip(filters.items(), totals.by_filter or [[0, 0]] * len(filters), strict=True)
    return {
        "writer": work.desk.writer.name,
        "recipe": settings.recipe.kind,
        "units": {"written_about": totals.units, "chosen": units, "left_out": dict(left_out)},
        "written": totals.written,
        "kept": kept,
        "not_needed": more,
        "filters": {name: {"in": came, "out": went, **one.about()} for (name, one), (came, went) in passed},
        "rejects": [{"by": by, "reason": reason, "count": count} for (by, reason), count in rejects.most_common()],
        "cost": asdict(totals.cost),
        "seconds": round(totals.seconds, 1),
    }


def _publish(
    settings: SynthesisSettings, layout: SynthesisLayout, record: Mapping[str, Any], done: Mapping[ChunkLayout, About]
) -> dict[str, Any]:
    """Rows, rejects, record and page, each written whole; returns the record.

    ``other_positive``: rows that are kept and whose positive is another passage than the seed.
    """
    from workflows.synthesis.page import make_page

    rows, rejects, other = list[str](), list[str](), 0
    for chunk in filter(None, (read_chunk(place, of) for place, of in done.items())):
        for written in chunk.kept:
            if len(rows) < record["kept"]:
                rows.append(_line(plain_row(written)))
                other += bool(written.made.get("other_positive"))
            else:
                rejects.append(_line(plain_reject(Reject(written.row.id, "keep", ENOUGH, written=written))))
        rejects += [_line(plain_reject(reject)) for reject in chunk.rejects]
    whole = {**record, "other_positive": other}
    atomic_write(layout.rows, "".join(rows))
    atomic_write(layout.rejects, "".join(rejects))
    write_record(layout.record, whole)
    atomic_write(layout.page, make_page(layout, whole, settings))
    return whole


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"
