"""What teachers find for queries, kept on disk: a file a teacher, a line a query, so that nothing is searched twice.

A file is known by the teacher's fingerprint and the number of hits, so a folder of them can be shared by runs::

    {"teacher": "runs/bm25", "fingerprint": "...", "hits": 50}
    {"query": "who ...?", "hits": [["p7", 11.3], ["p2", 9.8], ...]}

A query with an instruction of its own stands below it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from retrieval.training.instructions import search_each
from retrieval.training.row import TrainingRow
from sleuth.artifacts import fingerprint_of
from sleuth.errors import ArtifactError
from sleuth.protocols import Retriever
from sleuth.trajectories import open_for_append, read_jsonl
from sleuth.types import Hit

Ranking = tuple[str, ...]
"""Ids of the hits of a query, best first."""
Check = Callable[[Sequence[Sequence[Hit]]], None]
"""Called with the first hits that a teacher finds, before they are kept."""


def labels_file(teacher: Retriever, hits: int) -> str:
    """Name of the file with a teacher's labels."""
    return f"{fingerprint_of(teacher.fingerprint)[:16]}-{hits}.jsonl"


def asked(row: TrainingRow) -> str:
    """What a teacher is asked: the query, below its instruction if it has one."""
    return f"{row.instruction}\n{row.query}" if row.instruction else row.query


def read_labels(path: Path) -> dict[str, Ranking]:
    """The rankings in ``path`` by what was `asked`.

    Raises DataError naming a damaged line, ArtifactError for another file.
    """
    found: dict[str, Ranking] = {}
    for number, row in read_jsonl(path):
        if number == 1 and "fingerprint" in row:
            continue
        try:
            found[row["query"]] = tuple(str(identifier) for identifier, _score in row["hits"])
        except (KeyError, TypeError, ValueError):
            raise ArtifactError(f"{path}, line {number} is no ranking of a query", f"remove {path}") from None
    return found


def label(
    rows: Sequence[TrainingRow],
    teacher: Retriever,
    path: Path,
    *,
    name: str,
    hits: int,
    batch_size: int,
    check: Check,
    on_progress: Callable[[int, int], None],
) -> int:
    """Search the queries of ``rows`` that ``path`` does not have yet, and append each batch; returns how many.

    A teacher that fails leaves what it found before, and the next call goes on from there.
    """
    with _alone(path):
        new = not path.exists()
        with open_for_append(path) as file:  # drops a half-written last line
            if new or not path.stat().st_size:
                file.write(json.dumps({"teacher": name, "fingerprint": teacher.fingerprint, "hits": hits}) + "\n")
                file.flush()
            known = read_labels(path)
            missing = [row for what, row in {asked(row): row for row in rows}.items() if what not in known]
            for start in range(0, len(missing), batch_size):
                batch = missing[start : start + batch_size]
                found = search_each(teacher, batch, hits)
                if start == 0:
                    check(found)
                file.writelines(_line(asked(row), some) for row, some in zip(batch, found, strict=True))
                file.flush()
                on_progress(start + len(batch), len(missing))
    return len(missing)


def rankings(path: Path, queries: Iterable[str]) -> Mapping[str, Ranking]:
    """The rankings of ``queries``, as `asked`. Raises ArtifactError where some are missing."""
    known = read_labels(path) if path.exists() else {}
    wanted = dict.fromkeys(queries)
    lost = [query for query in wanted if query not in known]
    if lost:
        raise ArtifactError(
            f"{path} has no labels of {len(lost):,} queries, such as '{lost[0][:60]}'",
            "the data or the labels have changed since they were made: start again with --overwrite",
        )
    return {query: known[query] for query in wanted}


def _line(query: str, hits: Sequence[Hit]) -> str:
    row = {"query": query, "hits": [[hit.passage.id, round(hit.score, 6)] for hit in hits]}
    return json.dumps(row, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ArtifactError(f"another process is writing {path}", "wait for it to finish") from None
        yield
