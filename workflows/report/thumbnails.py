"""Thumbnails of the pages that trajectories found.

Trajectory files name a page and its digest only. The pictures are in the indexes that the settings of the runs name,
as far as they are still there.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from retrieval.pages.thumbnail import thumbnail_jpeg
from retrieval.store import PassageStore
from sleuth.errors import SleuthError
from sleuth.types import Hit, Image
from workflows.report.sample import Sample


@dataclass(frozen=True, slots=True)
class Thumbnails:
    """``made``: JPEG as base64 by the SHA-256 of the page. ``missing``: pages without one, and ``why``."""

    made: Mapping[str, str] = field(default_factory=dict)
    missing: int = 0
    why: str = ""

    @property
    def left_out(self) -> list[str]:
        return [f"{self.missing} pages have no thumbnail: {self.why}"] if self.missing else []


def make_thumbnails(samples: Sequence[Sample], indexes: Iterable[Path], budget: int) -> Thumbnails:
    """Those of the pages among the hits, the most frequent first, in at most ``budget`` bytes."""
    found = Counter(
        (hit.passage.id, hit.passage.image.sha256) for hit in _hits(samples) if hit.passage.image is not None
    )
    if not found:
        return Thumbnails()
    wanted = [page for page, _ in found.most_common()]
    images = _images(wanted, indexes)
    made: dict[str, str] = {}
    room, unread = budget, 0
    for _, digest in wanted:
        if digest not in images or digest in made:
            continue
        try:
            data = base64.b64encode(thumbnail_jpeg(images[digest])).decode("ascii")
        except SleuthError:
            unread += 1
            continue
        room -= len(data)
        if room < 0:
            break
        made[digest] = data
    gone = len({digest for _, digest in wanted} - made.keys())
    why = "left out to keep the page small" if room < 0 else "no index that the runs name has their pictures"
    return Thumbnails(made, gone, "their pictures are damaged" if unread and unread == gone else why)


def _hits(samples: Sequence[Sample]) -> Iterator[Hit]:
    for sample in samples:
        for group in sample.groups:
            for scored in group:
                yield from scored.trajectory.hits


def _images(wanted: Sequence[tuple[str, str]], indexes: Iterable[Path]) -> dict[str, Image]:
    """The pictures by digest: an index may have another page under an id."""
    images: dict[str, Image] = {}
    for index in dict.fromkeys(indexes):
        try:
            passages = PassageStore(index).get_many([identifier for identifier, _ in wanted])
        except SleuthError:
            continue
        digests = {digest for _, digest in wanted}
        for passage in passages:
            if passage is not None and passage.image is not None and passage.image.sha256 in digests:
                images[passage.image.sha256] = passage.image
    return images
