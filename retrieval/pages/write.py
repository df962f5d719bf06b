"""Writes a corpus of pages: ``corpus.jsonl`` in BEIR's layout, ``images/``, ``letters.jsonl`` and the judgements.

The work is in ``.NAME.part`` until it is complete; a run that was stopped goes on from there. A picture is kept once;
a page whose picture and text were there before is left out, and ``duplicates.jsonl`` says for which it stands.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from retrieval.pages.config import PageSettings
from retrieval.pages.judgements import CORPUS, DUPLICATES, NOTES, copy_judgements
from retrieval.pages.letters import LETTERS, letters_row
from retrieval.pages.sources import Page, Unit, documents_in, existing, identity_of, units_of
from sleuth.artifacts import atomic_write, resumable_folder, text_digest, write_manifest
from sleuth.errors import ArtifactError, DataError

log = logging.getLogger("sleuth.pages")

KIND = "pages"
IMAGES = "images"

_STATE = "state.json"
_FILES = (CORPUS, LETTERS, DUPLICATES, NOTES)
_EVERY = 64
"""Units after which what was written is made durable."""
_NAMED = 5
_LEAVE_OUT = "--skip-damaged leaves it out and goes on"


@dataclass(slots=True)
class PagesReport:
    """What was written: ``pages``, how many of the ``units`` were ``damaged``, the first few of them, and changes."""

    units: int = 0
    pages: int = 0
    duplicates: int = 0
    damaged: int = 0
    notes: int = 0
    examples: list[str] = field(default_factory=list)


def write_pages(
    source: str | Path,
    out: str | Path,
    settings: PageSettings | None = None,
    *,
    skip_damaged: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> PagesReport:
    """Make the folder ``out`` from ``source``; a stopped run of the same goes on.

    Raises DataError if nothing is there, or naming the first damaged document unless ``skip_damaged``; ArtifactError if
    ``out`` exists, or lies among the documents.
    """
    chosen = settings or PageSettings()
    if documents_in(existing(Path(source))) and Path(out).resolve().is_relative_to(Path(source).resolve()):
        raise ArtifactError(f"{out} lies in {source}, whose pictures are read", "choose a folder outside of it")
    with resumable_folder(out, overwrite=overwrite) as folder:
        asked = {"source": identity_of(source, chosen), "settings": chosen.model_dump(mode="json")}
        with _Writer(folder, asked, skip_damaged) as writer:
            for unit in itertools.islice(units_of(source, chosen), writer.report.units, None):
                writer.add(unit)
                if on_progress:
                    on_progress(writer.report.pages)
        report = writer.report
        if not report.pages:
            raise DataError(f"{source} has no pages", "; ".join(report.examples))
        judged = copy_judgements(source, folder)
        drawing = {"rendering": chosen.model_dump(mode="json"), "source": str(Path(source).resolve())}
        counts = {"pages": report.pages, "duplicates": report.duplicates, "damaged": report.damaged}
        write_manifest(folder, KIND, {**drawing, "counts": counts, "judged": judged})
        (folder / _STATE).unlink()
    return report


class _Unfit(Exception):  # noqa: N818 (a verdict on a state, caught in this file)
    """This state is not gone on with."""


class _Writer:
    """A corpus that is being written, from where an earlier run of the same was stopped."""

    def __init__(self, folder: Path, asked: dict[str, Any], skip_damaged: bool) -> None:
        self.report = PagesReport()
        self._folder, self._asked, self._skip = folder, asked, skip_damaged
        self._known: dict[str, str] = {}
        self._ids: set[str] = set()
        self._pictures: set[str] = set()
        self._fresh: list[Path] = []
        sizes = self._resumed()
        self._whole = self._state(sizes)
        self._files = {name: self._opened(folder / name, sizes.get(name, 0)) for name in _FILES}
        for row in self._rows():
            self._ids.add(row["_id"])
            self._pictures.add(row["image"])
            self._known[_key(row["_id"], row["image"], row["title"], row["text"])] = row["_id"]

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._keep()
        for name, file in self._files.items():
            file.close()
            if kind is None and name != CORPUS and not (self._folder / name).stat().st_size:
                (self._folder / name).unlink()

    def add(self, unit: Unit) -> None:
        try:
            for page in unit.pages():
                self._add(page, unit.where)
        except DataError as error:
            said = error.message if unit.where in error.message else f"{unit.where}: {error.message}"
            if not self._skip:
                raise DataError(said, "; ".join([*filter(None, [error.hint]), _LEAVE_OUT])) from None
            self.report.damaged += 1
            self._note(unit.where, error.message, **({"damaged": unit.id} if unit.id else {}))
            if len(self.report.examples) < _NAMED:
                self.report.examples.append(said)
        self.report.units += 1
        self._whole = self._state({name: file.tell() for name, file in self._files.items()})
        if self.report.units % _EVERY == 0:
            self._keep()

    def _add(self, page: Page, where: str) -> None:
        digest = page.picture.sha256
        name = f"{IMAGES}/{digest[:2]}/{digest[:24]}{page.picture.suffix}"
        if (first := self._known.get(_key(page.id, name, page.title, page.text))) is not None:
            self.report.duplicates += 1
            self._write(DUPLICATES, {"id": page.id, "same_as": first})
            return
        if page.id in self._ids:
            raise DataError(f"the id {page.id} is there already", "ids must differ")
        if page.picture.note:
            self.report.notes += 1
            self._note(where, page.picture.note)
        if name not in self._pictures:  # a file that is there may be of a run that was killed before it was durable
            self._write_picture(self._folder / name, page.picture.data)
            self._pictures.add(name)
        if page.lettering is not None:
            self._write(LETTERS, letters_row(name, digest, page.lettering))
        self._write(CORPUS, {"_id": page.id, "title": page.title, "text": page.text, "image": name})
        self._ids.add(page.id)
        self._known[_key(page.id, name, page.title, page.text)] = page.id
        self.report.pages += 1

    def _write_picture(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self._fresh.append(path)

    def _note(self, where: str, what: str, **more: str) -> None:
        self._write(NOTES, {"where": where, "note": what, **more})

    def _write(self, name: str, row: dict[str, Any]) -> None:
        text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
        self._files[name].write(text.encode("utf-8", "replace") + b"\n")

    def _keep(self) -> None:
        """Make the whole units durable; what was written of one that is not whole does not count."""
        for path in self._fresh:
            with path.open("rb") as picture:
                os.fsync(picture.fileno())
        self._fresh.clear()
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        atomic_write(self._folder / _STATE, json.dumps(self._whole))

    def _state(self, sizes: dict[str, int]) -> dict[str, Any]:
        report = self.report
        counts = {name: getattr(report, name) for name in ("units", "pages", "duplicates", "damaged", "notes")}
        return {"asked": self._asked, "counts": counts, "examples": list(report.examples), "sizes": sizes}

    def _resumed(self) -> dict[str, int]:
        """The sizes of the files that an earlier run of the same has written; else what it wrote is thrown away.

        Raises ArtifactError for a folder of somebody else.
        """
        state = self._folder / _STATE
        if not state.is_file() and any(self._folder.iterdir()):
            raise ArtifactError(f"{self._folder} holds what sleuth pages did not write", "move it away, or delete it")
        if state.is_file():
            try:
                return self._gone_on(json.loads(state.read_text(encoding="utf-8")))
            except _Unfit as reason:
                why = str(reason)
            except (ValueError, KeyError, TypeError, AttributeError):
                why = "its state is damaged"
            log.warning("the stopped run in %s is begun afresh: %s", self._folder, why)
        for path in self._folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        atomic_write(state, json.dumps(self._state({})))  # by which the folder is known as ours
        return {}

    def _gone_on(self, state: dict[str, Any]) -> dict[str, int]:
        if state["asked"] != self._asked:
            raise _Unfit("its documents or settings were others")
        sizes = {name: int(state["sizes"].get(name, 0)) for name in _FILES}
        if any(_size_of(self._folder / name) < size for name, size in sizes.items()):
            raise _Unfit("its files are cut off")
        self.report = PagesReport(**state["counts"], examples=list(state["examples"]))
        return sizes

    def _opened(self, path: Path, size: int) -> BinaryIO:
        file = path.open("r+b" if path.exists() else "w+b")
        file.truncate(size)
        file.seek(size)
        return file

    def _rows(self) -> Iterator[dict[str, Any]]:
        with (self._folder / CORPUS).open("rb") as file:
            yield from map(json.loads, file)


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _key(identifier: str, image: str, title: str, text: str) -> str:
    """Equal for equal pages. A title that is only the name of the file says nothing of the page."""
    file = PurePosixPath(identifier)
    own = "" if file.suffix and file.stem == title else title
    return text_digest(f"{image}\x1f{own}\x1f{text}")
