"""Evaluates a retriever, or TREC run files, on one set of queries or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sleuth.errors import ArtifactError, ConfigError
from workflows.logs import quiet_libraries
from workflows.play import Progress
from workflows.retrieval_evaluation import Found, RetrievalReport, Warn, choose_measures, judge, search_set

if TYPE_CHECKING:
    from retrieval.config import RetrieverSettings
    from retrieval.evaluation.runs import Run
    from retrieval.evaluation.sets import RetrievalSet
    from sleuth.protocols import Retriever

PLACE = "{set}"
"""Stands for the name of the set in settings and paths."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is evaluated and how; paths may have the name of the set in them as ``{set}``.

    Either ``index`` with ``overrides``, or ``run``, a finished run. ``k`` and ``measures`` None: the usual ones.
    ``out`` keeps finished sets; ``mteb`` is the folder of result files for mteb, where it is
    called ``model``.
    """

    index: str | None = None
    overrides: Sequence[str] = ()
    run: Path | None = None
    k: int | None = None
    measures: str | None = None
    against: Path | None = None
    passages: str | None = None
    run_out: Path | None = None
    per_query: Path | None = None
    out: Path | None = None
    skip_bad_rows: bool = False
    mteb: Path | None = None
    model: str | None = None


def evaluate_sets(
    sets: Sequence[RetrievalSet], job: Job, on_report: Callable[[RetrievalReport], None], warn: Warn, counting: Progress
) -> list[RetrievalReport]:
    """A report for each set, told as soon as there is one. Wrong files and measures are refused before any search."""
    from retrieval.evaluation.runs import read_run

    quiet_libraries()
    _check_places(sets, job)
    needed = job.run_out is None or job.run is not None or job.per_query is not None
    measures = [choose_measures(job.measures, chosen, needed=needed) for chosen in sets]
    against = [read_run(_for(job.against, chosen)) if job.against else None for chosen in sets]
    reports = []
    for chosen, names, other in zip(sets, measures, against, strict=True):
        report, run = _evaluate(chosen, names, other, job, warn, counting)
        report.levels = chosen.levels
        on_report(report)
        _write(report, run, chosen, job)  # last: an unwritable file must not lose figures that took an hour
        reports.append(report)
    if job.mteb:
        _write_mteb(sets, reports, job)
    return reports


def _evaluate(
    chosen: RetrievalSet, names: list[str], other: Run | None, job: Job, warn: Warn, counting: Progress
) -> tuple[RetrievalReport, Run]:
    from retrieval.evaluation.mteb_results import mteb_measures
    from retrieval.evaluation.runs import read_run
    from retrieval.evaluation.sets import without_left_out

    more = mteb_measures() if job.mteb else []
    settings, retriever = (None, None) if job.run else _open(chosen, job, warn)
    given = read_run(_for(job.run, chosen)) if job.run else {}
    identity = _identity(chosen, [*names, *more], other, job, retriever.fingerprint if retriever else given)
    place = job.out / chosen.name if job.out else None
    if place and (kept := _kept(place, chosen, identity)):
        return kept, read_run(f"{place}.run") if job.run_out else {}
    found, depth = Found(given, known=False), None
    if settings and retriever:
        found, names, depth = search_set(
            retriever,
            settings.most_hits,
            chosen,
            job.k,
            names,
            more,
            refuse=job.measures is not None,
            warn=warn,
            counting=counting,
        )
    values = judge(chosen, names, found, job.passages, warn)
    others = judge(chosen, names, Found(other, known=False), job.passages, warn) if other else {}
    report = RetrievalReport(chosen.name, len(chosen.qrels or chosen.queries), values, others, depth)
    report.judged = chosen.judged
    report.mteb = judge(chosen, [name for name in more if _within(name, depth)], found, None, warn)
    if place:
        _keep(place, report, found.run, identity)
    return report, without_left_out(found.run, chosen)


def _within(name: str, depth: int | None) -> bool:
    from retrieval.evaluation.measures import cutoff_of

    return depth is None or (cutoff_of(name) or 0) <= depth


def _open(chosen: RetrievalSet, job: Job, warn: Warn) -> tuple[RetrieverSettings, Retriever]:
    """The retriever for a set; indexes that do not exist are made from its passages."""
    from workflows.retrievers import open_alone

    settings = _settings(chosen, job)
    missing = _missing_indexes(settings) if chosen.corpus else []
    named = any(override.startswith("retriever.kind=") for override in job.overrides)
    if missing and not named and job.index and missing == [Path(job.index.replace(PLACE, chosen.name))]:
        raise ArtifactError(  # a slip in the name of a dense index must not end in the figures of BM25
            f"no index at {missing[0]}",
            f"to make it from {chosen.corpus}, name its kind: '{{kind: bm25, index: {job.index}}}'",
        )
    if chosen.corpus:
        settings = made_from(settings, chosen.corpus, skip_bad_rows=job.skip_bad_rows)
    for index in missing:
        warn(f"{index} does not exist: it is made from {chosen.corpus}")
    retriever = open_alone(settings, cached=False, resilient=not settings.at_hand)
    for index in missing:
        _tell_skipped(index, warn)
    return settings, retriever


def _settings(chosen: RetrievalSet, job: Job) -> RetrieverSettings:
    from workflows.retrievers import retriever_settings

    overrides = [override.replace(PLACE, chosen.name) for override in job.overrides]
    return retriever_settings((job.index or "{}").replace(PLACE, chosen.name), overrides)


def _missing_indexes(settings: RetrieverSettings) -> list[Path]:
    """The indexes in ``settings`` that do not exist and are to be made from nothing that they name."""
    from retrieval.config import IndexedSettings

    if isinstance(settings, IndexedSettings):
        return [settings.index] if settings.corpus is None and not settings.index.exists() else []
    return [index for part in settings.inside for index in _missing_indexes(part)]


def made_from(
    settings: RetrieverSettings, corpus: str, *, skip_bad_rows: bool = False, existing: bool = False
) -> RetrieverSettings:
    """``settings`` with ``corpus`` for every index inside that does not exist; ``existing``: for the others too.

    An index that exists is refused where it was made from other passages.
    """
    from retrieval.config import IndexedSettings, RetrieverSettings

    if isinstance(settings, IndexedSettings):
        change = {"corpus": corpus, "skip_bad_rows": settings.skip_bad_rows or skip_bad_rows}
        filled = settings.corpus is None and (existing or not settings.index.exists())
        return settings.model_copy(update=change) if filled else settings
    changes: dict[str, object] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, RetrieverSettings):
            changes[name] = made_from(value, corpus, skip_bad_rows=skip_bad_rows, existing=existing)
        elif isinstance(value, tuple | list) and any(isinstance(part, RetrieverSettings) for part in value):
            parts = (made_from(part, corpus, skip_bad_rows=skip_bad_rows, existing=existing) for part in value)
            changes[name] = type(value)(parts)
    return settings.model_copy(update=changes)


def _tell_skipped(index: Path, warn: Warn) -> None:
    from sleuth.artifacts import MANIFEST
    from sleuth.layout import read_record

    skipped = (read_record(index / MANIFEST) or {}).get("skipped") or {}
    for reason, count in sorted(skipped.items()):
        warn(f"{index}: {count:,} rows left out: {reason}")


def _check_places(sets: Sequence[RetrievalSet], job: Job) -> None:
    """Several sets need a path each. Raises ConfigError."""
    if len(sets) < 2:
        return
    paths = {"--run": job.run, "--run-out": job.run_out, "--per-query": job.per_query, "--against": job.against}
    for option, path in paths.items():
        if path is not None and PLACE not in str(path):
            raise ConfigError(f"{option} {path} is one file for {len(sets)} sets", f"write {PLACE} in its name")
    if not job.run and PLACE not in "".join((job.index or "", *job.overrides)):
        missing = _missing_indexes(_settings(sets[0], job))
        if missing:
            raise ConfigError(f"{missing[0]} cannot be made from {len(sets)} sets", f"write {PLACE} in its name")


def _for(path: Path, chosen: RetrievalSet) -> Path:
    return Path(str(path).replace(PLACE, chosen.name))


def _write(report: RetrievalReport, run: Run, chosen: RetrievalSet, job: Job) -> None:
    from retrieval.evaluation.runs import write_per_query, write_run

    if job.per_query:
        write_per_query(_for(job.per_query, chosen), report.values)
    if job.run_out:
        write_run(_for(job.run_out, chosen), run)


def _write_mteb(sets: Sequence[RetrievalSet], reports: Sequence[RetrievalReport], job: Job) -> None:
    from retrieval.evaluation.measures import means
    from retrieval.evaluation.mteb_results import write_mteb_results
    from sleuth.artifacts import fingerprint_of

    assert job.mteb
    found = {
        report.name: (chosen.split, means(report.mteb))
        for chosen, report in zip(sets, reports, strict=True)
        if report.mteb
    }
    given = str(job.run or job.index or "retriever")
    write_mteb_results(job.mteb, job.model or given, fingerprint_of([given, *job.overrides]), found)


def _identity(
    chosen: RetrievalSet, names: Sequence[str], other: Run | None, job: Job, retriever: str | Run
) -> Mapping[str, str]:
    """Digests of everything that decides the figures."""
    from sleuth.artifacts import fingerprint_of

    texts = {query.id: [query.text, *query.answers] for query in chosen.asked}
    left_out = {query: sorted(chosen.left_out(query)) for query in chosen.qrels}
    return {
        "retriever": fingerprint_of(retriever),
        "set": fingerprint_of([texts, chosen.qrels, left_out]),
        "measures": fingerprint_of([list(names), job.k, other]),
    }


def _keep(place: Path, report: RetrievalReport, run: Run, identity: Mapping[str, str]) -> None:
    """``PLACE.json`` for the figures of every query, ``PLACE.run`` for the run."""
    from retrieval.evaluation.runs import write_run
    from sleuth.layout import write_record

    write_run(f"{place}.run", run)
    fields = {name: getattr(report, name) for name in _KEPT}
    write_record(Path(f"{place}.json"), {"identity": identity, **fields})


_KEPT = ("judged", "queries", "values", "others", "depth", "mteb")


def _kept(place: Path, chosen: RetrievalSet, identity: Mapping[str, str]) -> RetrievalReport | None:
    """The report of a set that was finished before. Raises ArtifactError if it is of something else."""
    from sleuth.layout import read_record

    path = Path(f"{place}.json")
    record = read_record(path)
    if record is None:
        return None
    before = record.get("identity", {})
    changed = [name for name in identity if before.get(name) != identity[name]]
    if changed:
        raise ArtifactError(
            f"{path} has the figures of another {' and '.join(changed)}", "choose another --out, or delete that file"
        )
    return RetrievalReport(chosen.name, **{name: record[name] for name in _KEPT}, kept=True)
