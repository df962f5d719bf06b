"""Builds the index of an encoder family from a corpus: store the passages, encode them piece by piece, write them.

The work is in ``.NAME.part`` next to the index until it is complete; a killed build resumes from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from retrieval.corpus import BadRow
from retrieval.encoders.family import PassageEncoder
from retrieval.encoders.modalities import modalities_of
from retrieval.encoders.pieces import SHARD, STATE, EncodePieces, IndexWriter, OnProgress, encode_store
from retrieval.indexes import IndexInfo
from retrieval.ingest import IngestReport, describe_source, ingest
from retrieval.store import PassageStore, StoreWriter
from retrieval.windows_config import WindowSettings
from sleuth.artifacts import MANIFEST, atomic_write, resumable_folder, write_manifest

_STORED = "stored.json"

OpenWriter = Callable[[Path, int], IndexWriter]
"""Called with the folder of an unfinished index and its number of passages; returns its writer."""


def build_index(
    corpus_path: str | Path,
    out: str | Path,
    encoder: PassageEncoder,
    open_writer: OpenWriter,
    *,
    format_version: int,
    batch_size: int = 32,
    shard: int = SHARD,
    elsewhere: EncodePieces | None = None,
    layout: str | None = None,
    window: WindowSettings | None = None,
    skip_bad_rows: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> IndexInfo:
    """Encode every passage of ``corpus_path``, or its windows, into an index in the folder ``out``, of the kind of the
    encoder's family.

    The index is written atomically, and a killed build is resumed. Raises DataError naming the bad rows unless
    ``skip_bad_rows``, ArtifactError if ``out`` exists.
    """
    with resumable_folder(out, overwrite=overwrite) as folder:
        stored, whole, examples = _store(folder, corpus_path, layout, window, skip_bad_rows)
        store = PassageStore(folder)
        writer = open_writer(folder, len(store))
        encode_store(
            store,
            encoder,
            writer,
            folder,
            batch_size=batch_size,
            shard=shard,
            elsewhere=elsewhere,
            on_progress=on_progress,
        )
        fields, own = writer.finish()
        files = [*own, *store.files]
        fields = {
            "format": format_version,
            "passages": len(store),
            **fields,
            "encoder": describe_encoder(encoder),
            "indexed": "title + ' ' + text",
            **stored,
            **({"modalities": _held(store)} if store.has_images else {}),
            "files": {name: (folder / name).stat().st_size for name in files},
        }
        write_manifest(folder, encoder.family.kind, fields)
        _drop_working_files(folder, keep=[*files, MANIFEST])
    return IndexInfo(Path(out), len(store), stored["skipped"], tuple(examples), whole)


def describe_encoder(encoder: PassageEncoder) -> dict[str, Any]:
    """What is later compared to check that an encoder fits an index: the passage tower's digest and its settings."""
    return {
        "source": None if encoder.source is None else _absolute(encoder.source),
        "passage_fingerprint": encoder.tower_fingerprint("passage"),
        "settings": encoder.settings.model_dump(mode="json"),
    }


def _store(
    folder: Path, corpus: str | Path, layout: str | None, window: WindowSettings | None, skip_bad_rows: bool
) -> tuple[dict[str, Any], int | None, Iterable[BadRow]]:
    """Store the passages, unless an earlier run over the same files did.

    Returns their manifest entry, how many passages were cut into them (None: they are whole), and rows left out.
    """
    asked = {"corpus": describe_source(corpus, window), "layout": layout, "skip_bad_rows": skip_bad_rows}
    path = folder / _STORED
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if known.get("asked") == asked:
        return known["stored"], known.get("whole"), ()
    (folder / STATE).unlink(missing_ok=True)  # the encoded pieces were of other passages
    report = IngestReport()
    with StoreWriter(folder) as store:
        for _ in ingest(corpus, store, report, layout=layout, window=window, skip_bad_rows=skip_bad_rows):
            pass
    stored = {"passages_sha256": store.digest, "skipped": dict(report.skipped), "corpus": asked["corpus"]}
    whole = None if window is None else report.whole
    atomic_write(path, json.dumps({"asked": asked, "stored": stored, "whole": whole}))
    return stored, whole, report.examples


def _held(store: PassageStore) -> list[str]:
    """What there is to read of one passage or another: text, image, or image+text."""
    return sorted({"+".join(sorted(modalities_of(passage))) for passage in store})


def _drop_working_files(folder: Path, keep: Sequence[str]) -> None:
    """Delete the state first: a run killed in between must not treat deleted vectors as encoded."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name != STATE):
        if path.name not in keep:
            path.unlink()


def _absolute(source: str) -> str:
    return str(Path(source).resolve()) if Path(source).exists() else source
