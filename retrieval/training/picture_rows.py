"""Training rows whose passages are pictures: colpali-engine's, and pictures that Tevatron rows name by path.

colpali-engine's are ``{"query", "pos_target", "neg_target"}``. A target, or each of a list, is the path of a picture
beside the file, its bytes (in Parquet), or with a ``corpus`` the id of one of its passages; a path and bytes may come
as ``{"bytes", "path"}``, as the hub's datasets have them. No picture is kept decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeGuard

from retrieval.images import find_image
from sleuth.rows import RawRow
from sleuth.types import Image, Passage

Find = Callable[[str, Path], Image]
_UNSEEN = "of "
"""How the digest of a picture begins of which only the path, which follows, is known yet."""


def named(path: str) -> Image:
    """The picture at ``path``, before it is looked for; those of other paths are others."""
    return Image(path, _UNSEEN + path)


def is_unseen(image: Image | None) -> TypeGuard[Image]:
    """Whether only the path is known."""
    return image is not None and image.sha256.startswith(_UNSEEN)


def picture_of(value: object) -> Image | None:
    """The picture that a row has as bytes, as a path, or as ``{"bytes", "path"}``; None: neither."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (value, value)
    if isinstance(data, bytes):
        digest = hashlib.sha256(data).hexdigest()
        return Image(f"{digest[:16]}.png", digest, data)
    return named(path) if isinstance(path, str) and path.strip() and data in (None, path) else None


def targets(row: RawRow, name: str) -> list[Passage]:
    """The passages of one side of a colpali-engine row; a target that is no bytes is a path, or an id."""
    value = row.fields.get(name)
    found = []
    for target in value if isinstance(value, list) else [] if value is None else [value]:
        numbered = isinstance(target, int) and not isinstance(target, bool)
        image = picture_of(str(target) if numbered else target)
        if image is None:
            raise row.error(f"'{name}' is neither a picture's path, nor its bytes, nor an id")
        found.append(Passage(image.name if is_unseen(image) else image.sha256[:16], "", "", image))
    return found


def located(row: RawRow, passage: Passage, folder: Path, find: Find = find_image) -> Passage:
    """``passage`` with its picture found in ``folder``, if it is known by path alone. Raises DataError if it is not."""
    if not is_unseen(passage.image):
        return passage
    try:
        return replace(passage, image=find(passage.image.name, folder))
    except ValueError as reason:
        hint = f"paths are relative to {folder}; ids need the source's corpus"
        raise row.error(f"the picture {passage.image.name}: {reason}", hint) from None


def by_id(row: RawRow, passage: Passage, corpus: Mapping[str, Passage]) -> Passage:
    """The passage of ``corpus`` that a target names. Raises DataError for an unknown id."""
    if not is_unseen(passage.image):
        return passage
    if passage.id not in corpus:
        raise row.error(f"the corpus has no passage {passage.id}")
    return corpus[passage.id]
