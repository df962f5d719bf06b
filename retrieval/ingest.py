"""Reads a corpus into the passage store of an index, batch by batch, and reports every bad row.

Each kind of index is built the same way: ``for batch in ingest(...): index the batch``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from retrieval.corpus import BadRow, PassageRow, corpus_files, image_files, read_rows
from retrieval.store import StoreWriter
from retrieval.windows import cut_rows
from retrieval.windows_config import WindowSettings, windows_named
from sleuth.artifacts import file_digest, fingerprint_of
from sleuth.errors import ArtifactError, DataError
from sleuth.files import hub_dataset, on_hub
from sleuth.types import Passage

BATCH = 2_000
DUPLICATE = "duplicate id"

_NAMED = 5

OnProgress = Callable[[int], None]
"""Called with the number of passages stored so far."""


@dataclass(slots=True)
class IngestReport:
    """How many passages there were before they were cut into windows; the skipped rows by reason, and the first few."""

    whole: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: list[BadRow] = field(default_factory=list)

    def add(self, row: BadRow) -> None:
        self.skipped[row.reason] += 1
        if len(self.examples) < _NAMED:
            self.examples.append(row)


def ingest(
    corpus: str | Path,
    store: StoreWriter,
    report: IngestReport,
    *,
    layout: str | None = None,
    window: WindowSettings | None = None,
    skip_bad_rows: bool = False,
    on_progress: OnProgress | None = None,
) -> Iterator[list[Passage]]:
    """Write the passages of ``corpus``, or their windows, into ``store`` and yield them in batches for indexing.

    Bad rows raise DataError naming file and line, unless ``skip_bad_rows``, when ``report`` counts them.
    A corpus without passages is always an error.
    """
    for rows in _batched(cut_rows(_counted(read_rows(corpus, layout), report), window)):
        batch = _accept(rows, store, report)
        if report.skipped and not skip_bad_rows:
            raise _refusal(report)
        yield batch
        if on_progress:
            on_progress(len(store))
    if not len(store):
        raise DataError(f"{corpus} has no passages", "; ".join(str(row) for row in report.examples))


def describe_source(corpus: str | Path, window: WindowSettings | None = None) -> dict[str, object]:
    """What identifies the corpus that an index was built from: digest, size and time of each file, its pictures, and
    how it was cut into windows.

    A dataset of the hub is identified by the fingerprint that ``datasets`` gives it.
    """
    cut = {} if window is None else {"window": window.identity}
    if on_hub(corpus):
        return {"path": str(corpus), "files": [], "dataset": hub_dataset(corpus)._fingerprint, **cut}
    files = corpus_files(corpus)
    images = list(image_files(corpus))
    described: dict[str, object] = {
        "path": str(Path(corpus).resolve()),
        "files": [
            {"name": f.name, "bytes": f.stat().st_size, "mtime_ns": f.stat().st_mtime_ns, "sha256": file_digest(f)}
            for f in files
        ],
        **cut,
    }
    if images:
        described["images"] = {"times": _times(images), "sha256": _contents(images)}
    return described


def check_source(
    index: str | Path,
    recorded: dict[str, object],
    corpus: str | None,
    window: WindowSettings | None,
    rebuild: Callable[[str], str],
) -> None:
    """Raise ArtifactError where ``index`` is not of the ``corpus`` that is named, or not of such windows.

    ``rebuild`` gives the command that makes it anew from what it is called with. Without corpus and window anything
    will do; without a corpus, so will its passages.
    """
    source = f"{corpus or recorded['path']}{f' {window.options}' if window else ''}"
    if corpus is not None and not same_source(recorded, corpus):
        raise ArtifactError(
            f"{index} was made from other passages than {corpus}", f"make it anew with: {rebuild(source)}"
        )
    wanted, found = window.identity if window else None, recorded.get("window")
    if wanted != found and (corpus is not None or window is not None):
        raise ArtifactError(
            f"{index} has {windows_named(found)}, not {windows_named(wanted)}", f"make it anew with: {rebuild(source)}"
        )


def same_source(recorded: dict[str, object], corpus: str | Path) -> bool:
    """Whether ``corpus`` is still the one recorded; digests are computed only if time or size changed."""
    if on_hub(corpus):
        return bool(recorded.get("dataset") == hub_dataset(corpus)._fingerprint)
    files, known = corpus_files(corpus), recorded.get("files")
    if not isinstance(known, list) or not known or len(known) != len(files):
        return False
    for file, entry in zip(files, known, strict=True):
        if file.stat().st_size != entry["bytes"]:
            return False
        if file.stat().st_mtime_ns != entry["mtime_ns"] and file_digest(file) != entry["sha256"]:
            return False
    pictured = recorded.get("images")
    if not isinstance(pictured, dict):
        return True
    images = list(image_files(corpus))
    return bool(_times(images) == pictured["times"] or _contents(images) == pictured["sha256"])


def _times(images: Sequence[Path]) -> str:
    """Digest of size and time of each picture: cheap, and different if one was written again."""
    stats = [path.stat() if path.is_file() else None for path in images]
    return fingerprint_of({"images": [[s.st_size, s.st_mtime_ns] if s else None for s in stats]})


def _contents(images: Sequence[Path]) -> str:
    return fingerprint_of({"images": [file_digest(path) if path.is_file() else None for path in images]})


def _counted(rows: Iterator[PassageRow | BadRow], report: IngestReport) -> Iterator[PassageRow | BadRow]:
    for row in rows:
        report.whole += isinstance(row, PassageRow)
        yield row


def _batched(rows: Iterator[PassageRow | BadRow]) -> Iterator[list[PassageRow | BadRow]]:
    batch: list[PassageRow | BadRow] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _accept(rows: list[PassageRow | BadRow], store: StoreWriter, report: IngestReport) -> list[Passage]:
    good = [row for row in rows if isinstance(row, PassageRow)]
    verdicts = iter(store.add([row.passage for row in good]))
    batch = []
    for row in rows:
        if isinstance(row, BadRow):
            report.add(row)
        elif next(verdicts):
            batch.append(row.passage)
        else:
            report.add(BadRow(DUPLICATE, row.file, row.line))
    return batch


def _refusal(report: IngestReport) -> DataError:
    count = report.skipped.total()
    named = "; ".join(str(row) for row in report.examples)
    more = f" (and {count - len(report.examples)} more near them)" if count > len(report.examples) else ""
    return DataError(f"{named}{more}", "fix the corpus, or pass --skip-bad-rows to skip such rows")
