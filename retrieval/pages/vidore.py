"""ViDoRe's rows: ``image`` with its bytes beside a query."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sleuth.errors import DataError

_OWN = ("corpus-id", "corpus_id", "image_filename")


def holds_pictures(file: Path) -> bool:
    """Whether the Parquet ``file`` has a column of pictures, whatever its rows are. Raises DataError if it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {file}: {error}", "is the file cut off?") from None
    kind = schema.field("image").type if "image" in schema.names else pa.null()
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def picture_bytes(row: Mapping[str, Any]) -> bytes | None:
    """The encoded picture of a row; None if it has none."""
    image = row.get("image")
    data = image.get("bytes") if isinstance(image, Mapping) else image
    return data if isinstance(data, bytes) else None


def vidore_ids() -> Callable[[Mapping[str, Any], bytes], str]:
    """Names the page of each row, asked in their order: its own id, the name of its picture, or what that holds.

    A name that was another picture's gets the beginning of the digest too.
    """
    digests: dict[str, str] = {}

    def name(row: Mapping[str, Any], data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        own = next((str(row[key]) for key in _OWN if row.get(key) not in (None, "")), digest[:16])
        return own if digests.setdefault(own, digest) == digest else f"{own}-{digest[:8]}"

    return name
