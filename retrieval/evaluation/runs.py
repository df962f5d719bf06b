"""TREC run files: ``query Q0 passage rank score tag``, one hit per line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from retrieval.evaluation.judgements import split_lines
from sleuth.artifacts import atomic_write
from sleuth.errors import DataError

Run = dict[str, dict[str, float]]
"""Score by passage id, by query id."""


def write_run(path: str | Path, run: Run, tag: str = "sleuth") -> None:
    """Write ``run`` atomically, best hits first. Raises DataError for an id with white space."""
    lines = []
    for query, scores in run.items():
        for rank, (passage, score) in enumerate(sorted(scores.items(), key=lambda item: -item[1]), start=1):
            for name in (query, passage, tag):
                if not name or name.split() != [name]:
                    raise DataError(f"'{name}' cannot be written to a TREC run: white space separates its columns")
            lines.append(f"{query} Q0 {passage} {rank} {score!r} {tag}\n")
    atomic_write(path, "".join(lines))


def write_per_query(path: str | Path, values: Mapping[str, Mapping[str, float]]) -> None:
    """Write every measure (query ids to values, by name) of every query: ``.json`` by query, else a table with tabs."""
    queries = dict.fromkeys(query for found in values.values() for query in found)
    rows = {query: {name: found[query] for name, found in values.items() if query in found} for query in queries}
    if Path(path).suffix == ".json":
        atomic_write(path, json.dumps(rows, indent=1) + "\n")
        return
    lines = ["\t".join(("query", *values))]
    lines += ["\t".join((query, *(str(row.get(name, "")) for name in values))) for query, row in rows.items()]
    atomic_write(path, "\n".join(lines) + "\n")


def read_run(path: str | Path) -> Run:
    """Scores as written; ranks are ignored, as trec_eval does. Raises DataError naming the file and the line."""
    run: Run = {}
    for number, fields in split_lines(path):
        where = f"{path}, line {number}"
        if len(fields) != 6:
            raise DataError(f"{where}: {len(fields)} columns, not 6", "write: query Q0 passage rank score tag")
        query, _, passage, _, given, _ = fields
        scores = run.setdefault(query, {})
        if passage in scores:
            raise DataError(f"{where}: duplicate passage {passage} for query {query}")
        scores[passage] = _score(given, where)
    if not run:
        raise DataError(f"{path} has no hits")
    return run


def _score(given: str, where: str) -> float:
    try:
        score = float(given)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise DataError(f"{where}: the score '{given}' is not a number")
    return score
