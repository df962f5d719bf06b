"""What pages are made of: PDFs, pictures, texts and HTML, in files or folders, and the rows of a corpus.

A source is a lazy series of units, each of which gives its pages when it is asked for them, so that a run that was
stopped goes on without making again what it had.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hub.pictures import read_image
from retrieval.corpus import BadRow, corpus_files, image_files, read_rows
from retrieval.pages.chromium import find_chromium, printed
from retrieval.pages.config import PageSettings
from retrieval.pages.draw import Drawer
from retrieval.pages.html import text_of_html
from retrieval.pages.letters import Lettering
from retrieval.pages.pdf import open_pdf, read_page
from retrieval.pages.pictures import Picture, encode, read_picture
from retrieval.pages.vidore import holds_pictures, picture_bytes, vidore_ids
from sleuth.artifacts import fingerprint_of
from sleuth.errors import DataError, nearest
from sleuth.evidence import window_id
from sleuth.files import PARQUET, parquet_rows, suffix_of
from sleuth.types import Passage

PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff")
TEXTS = (".txt", ".md")
HTML = (".html", ".htm")
DOCUMENTS = (".pdf", *PICTURES, *TEXTS, *HTML)
_NAMED = 8


@dataclass(frozen=True, slots=True)
class Page:
    """A picture with its text layer. ``lettering``: where its letters are, where that is known."""

    id: str
    title: str
    text: str
    picture: Picture
    lettering: Lettering | None = None


@dataclass(frozen=True, slots=True)
class Unit:
    """A document, a page of one, or a row. ``pages`` raises DataError if it is damaged.

    ``id``: of its page, or of the document that its pages are of; empty where a damaged row does not say.
    """

    where: str
    pages: Callable[[], Iterable[Page]]
    id: str = ""


def units_of(source: str | Path, settings: PageSettings) -> Iterator[Unit]:
    """The units of ``source`` in a fixed order. Raises DataError if there is no such source, or nothing in it."""
    path, drawer = existing(Path(source)), Drawer(settings)
    if settings.renderer == "chromium":
        find_chromium()
    if files := documents_in(path):
        for file in files:
            yield from _of_file(file, path if path.is_dir() else path.parent, drawer)
    elif shards := shards_of(path):
        yield from _of_vidore(shards)
    else:
        for row in read_rows(source):
            yield _of_row(row, drawer)


def identity_of(source: str | Path, settings: PageSettings) -> str:
    """Changes when a file of ``source`` that is read does; in a folder that a browser prints from, when any file does.

    What a single HTML file names is not looked at: it is one unit, which a stopped run has whole or not at all.
    """
    path = Path(source)
    files = documents_in(path) or shards_of(path) or [*corpus_files(path), *image_files(path)]
    if settings.renderer == "chromium" and path.is_dir() and any(suffix_of(file) in HTML for file in files):
        files = sorted(path.rglob("*"))
    return fingerprint_of([str(source), *(state for file in files if (state := _state_of(file)))])


def _state_of(file: Path) -> list[str | int]:
    """Name, size and time of a file; nothing of a folder, or of what has gone meanwhile."""
    try:
        found = file.stat()
    except (OSError, ValueError):  # the latter: a row names a file as no file can be named
        return []
    return [str(file), found.st_size, found.st_mtime_ns] if stat.S_ISREG(found.st_mode) else []


def documents_in(path: Path) -> list[Path]:
    """The document at ``path``, or those in the folder and below it, by name.

    None in a folder of a corpus, whose rows name its pictures, nor in one of rows beside which there is only a README.
    """
    if not path.is_dir():
        return [path] if suffix_of(path) in DOCUMENTS else []
    if _holds_corpus(path):
        return []
    named = (file for file in path.rglob("*") if file.suffix.lower() in DOCUMENTS)
    found = sorted(file for file in named if file.is_file() or _leads_nowhere(file))
    return found if any(file.stem.lower() != "readme" for file in found) or not _shards_below(path) else []


def shards_of(path: Path) -> list[Path]:
    """The Parquet files of ViDoRe's rows at ``path``, by name; none if documents or a corpus are read there.

    Raises DataError for a file that is cut off.
    """
    if path.is_dir():
        return [] if _holds_corpus(path) or documents_in(path) else _shards_below(path)
    return [path] if suffix_of(path) == PARQUET and holds_pictures(path) else []


def _shards_below(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob(f"*{PARQUET}")) if file.is_file() and holds_pictures(file)]


def _holds_corpus(folder: Path) -> bool:
    return any((folder / f"corpus{suffix}").is_file() for suffix in (".jsonl", ".jsonl.gz", ".tsv", PARQUET))


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def existing(path: Path) -> Path:
    """``path``. Raises DataError if nothing is there."""
    if not path.exists():
        there = path.parent.iterdir() if path.parent.is_dir() else ()
        near = nearest(path.name, [other.name for other in there if not other.name.startswith(".")])
        raise DataError(f"no document at {path}", f"did you mean '{near}'?" if near else "")
    return path


def _of_file(file: Path, folder: Path, drawer: Drawer) -> Iterator[Unit]:
    name, kind = file.relative_to(folder).as_posix(), file.suffix.lower()
    if _leads_nowhere(file):
        yield Unit(str(file), _raising(DataError(f"{file} is a link to nothing", "remove it")), name)
    elif kind == ".pdf":
        yield from _of_pdf(file, name, drawer.settings.dpi)
    elif kind in PICTURES:
        yield Unit(str(file), lambda: _pictured(file, name), name)
    elif kind in HTML and drawer.settings.renderer == "chromium":
        yield Unit(str(file), lambda: _printed(file, name, drawer.settings.dpi), name)
    else:
        yield Unit(str(file), lambda: _drawn(_document(file, name, kind), drawer), name)


def _of_pdf(file: Path, name: str, dpi: int) -> Iterator[Unit]:
    """A unit a page; one that raises what is wrong if the file is no PDF that can be read."""
    try:
        document = open_pdf(file)
    except DataError as error:
        yield Unit(str(file), _raising(error), name)
        return
    with document:
        for number in range(len(document)):
            where, identifier = f"{file}, page {number + 1}", f"{name}#{number + 1}"
            yield Unit(where, _pdf_page(document, number, identifier, file.stem, dpi), identifier)


def _pdf_page(document: Any, number: int, identifier: str, title: str, dpi: int) -> Callable[[], Iterable[Page]]:
    def pages() -> Iterable[Page]:
        picture, text, lettering = read_page(document, number, dpi)
        yield Page(identifier, title, text, picture, lettering)

    return pages


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Raise DataError naming ``file`` where the system does not let it be read."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}", "mend it, or move it away") from None


def _pictured(file: Path, name: str) -> Iterator[Page]:
    with _reading(file):
        data = file.read_bytes()
    yield Page(name, file.stem, "", read_picture(data, file.name))


def _printed(file: Path, name: str, dpi: int) -> Iterator[Page]:
    """HTML as a browser prints it; ids are those of a drawn text."""
    with _reading(file):
        title = text_of_html(file.read_text(encoding="utf-8-sig", errors="replace"))[0] or file.stem
    with printed(file) as document:
        for number in range(len(document)):
            picture, text, lettering = read_page(document, number, dpi)
            identifier = name if len(document) == 1 else window_id(name, number)
            yield Page(identifier, title, text, picture, lettering)


def _raising(error: DataError) -> Callable[[], Iterable[Page]]:
    def pages() -> Iterable[Page]:
        raise error

    return pages


def _document(file: Path, name: str, kind: str) -> Passage:
    try:
        with _reading(file):
            content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{file} is not UTF-8 text", "convert it") from None
    if kind in HTML:
        title, text = text_of_html(content)
    else:
        title, text = "", content
    if not text.strip():
        raise DataError(f"{file} has no text to draw")
    return Passage(name, title or file.stem, text)


def _of_row(row: Any, drawer: Drawer) -> Unit:
    if isinstance(row, BadRow):
        return Unit(f"{row.file}:{row.line}", _raising(DataError(str(row), "fix the corpus")), row.id)
    passage, where = row.passage, f"{row.file}:{row.line}"
    if passage.image is None:
        return Unit(where, lambda: _drawn(passage, drawer), passage.id)
    image = passage.image

    def kept() -> Iterable[Page]:
        yield Page(passage.id, passage.title, passage.text, read_picture(read_image(image), image.name))

    return Unit(where, kept, passage.id)


def _drawn(passage: Passage, drawer: Drawer) -> Iterator[Page]:
    """A text as pages. Each has the part of the text that is on it; further ones are named as windows are."""
    if not (passage.title + passage.text).strip():
        raise DataError(f"{passage.id} has no text to draw")
    if not drawer.can_write(passage.text if passage.text.strip() else passage.title):
        raise DataError(f"{passage.id} has no letter that the font {drawer.font_name} has", "choose another --font")
    written = f"{passage.title}\n{passage.text}" if passage.title else passage.text
    pages = list(drawer.pages(written, passage.id))
    for number, drawn in enumerate(pages):
        height, width = drawn.pixels.shape
        lettering = None if drawn.shaped else Lettering((width, height), tuple(drawn.lines))
        notes = (_lacked(drawn.lacking, drawer), _misdrawn(drawn.shaped, drawer))
        picture = replace(encode(drawn.pixels), note="; ".join(filter(None, notes)))
        page = Page(passage.id, passage.title, passage.text, picture, lettering)
        yield page if len(pages) == 1 else replace(page, id=window_id(passage.id, number), text=drawn.text)


def _lacked(letters: str, drawer: Drawer) -> str:
    if not letters:
        return ""
    shown = " ".join(letters[:_NAMED]) + " ..." * (len(letters) > _NAMED)
    return f"the font {drawer.font_name} lacks {len(letters)} of its letters ({shown}); choose another --font"


def _misdrawn(lines: int, drawer: Drawer) -> str:
    if not lines or drawer.shapes:
        return ""
    how = "in cells" if drawer.settings.cell else "by this Pillow"
    return f"{lines} of its lines join letters or run from right to left, and {how} letters are drawn one by one"


def _of_vidore(files: Sequence[Path]) -> Iterator[Unit]:
    """Each page of the rows once, in order of first appearance."""
    known: set[str] = set()
    name = vidore_ids()
    for where, row in ((f"{file}:{n}", row) for file in files for n, row in enumerate(parquet_rows(file), start=1)):
        data = picture_bytes(row)
        if data is None:
            yield Unit(where, _raising(DataError(f"{where}: the row has no picture")))
            continue
        identifier = name(row, data)
        if identifier not in known:
            known.add(identifier)
            yield Unit(where, _vidore_page(identifier, row, data), identifier)


def _vidore_page(identifier: str, row: Mapping[str, Any], data: bytes) -> Callable[[], Iterable[Page]]:
    def pages() -> Iterable[Page]:
        text = row.get("text_description") or row.get("markdown") or row.get("text") or ""
        yield Page(identifier, "", str(text), read_picture(data, identifier))

    return pages
