"""From a corpus to a dense index: passages, vectors and, if asked, an approximate index over them.

The work lies in ``.NAME.part`` beside the index until it is whole; a run that was killed goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from retrieval.corpus import BadRow
from retrieval.dense.approximate import FILES, IndexParameters, IndexType, build_approximate
from retrieval.dense.encode import SHARD, STATE, EncodePieces, OnProgress, encode_corpus
from retrieval.dense.vectors import DTYPES, SCALES, VECTORS, Dtype, StoredVectors
from retrieval.encoders.encoder import Encoder
from retrieval.indexes import IndexInfo
from retrieval.ingest import IngestReport, describe_source, ingest
from retrieval.store import IDS, OFFSETS, PASSAGES, PassageStore, StoreWriter
from sleuth.artifacts import atomic_write, resumable_folder, write_manifest
from sleuth.errors import ConfigError, did_you_mean

KIND = "dense"
FORMAT = 1

_STORED = "stored.json"


def rebuild_command(
    index: str | Path, corpus: object = "CORPUS", encoder: object = "ENCODER", how: Mapping[str, Any] | None = None
) -> str:
    """The command that makes ``index`` anew; ``how`` is its manifest, or what of it matters."""
    command = f"sleuth index {corpus} --out {index} --kind {KIND} --encoder {encoder}"
    chosen = how or {}
    for option, key, usual in (("--index-type", "index_type", "flat"), ("--dtype", "dtype", "float32")):
        if chosen.get(key, usual) != usual:
            command += f" {option} {chosen[key]}"
    return f"{command} --overwrite"


def build_dense(
    corpus_path: str | Path,
    out: str | Path,
    encoder: Encoder,
    *,
    index_type: IndexType = "flat",
    dtype: Dtype = "float32",
    parameters: IndexParameters | None = None,
    batch_size: int = 32,
    shard: int = SHARD,
    elsewhere: EncodePieces | None = None,
    layout: str | None = None,
    skip_bad_rows: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> IndexInfo:
    """Encode every passage of ``corpus_path`` and make an index of the vectors in the folder ``out``.

    It appears whole or not at all, and what a killed run had done is not done again. Raises DataError naming the
    bad rows unless ``skip_bad_rows``, ArtifactError when ``out`` exists, ConfigError for an unknown type.
    """
    _check(index_type, dtype)
    how = parameters or IndexParameters()
    with resumable_folder(out, overwrite=overwrite) as folder:
        stored, examples = _store(folder, corpus_path, layout, skip_bad_rows)
        store = PassageStore(folder)
        vectors = encode_corpus(
            store,
            encoder,
            folder,
            dtype=dtype,
            batch_size=batch_size,
            shard=shard,
            elsewhere=elsewhere,
            on_progress=on_progress,
        )
        files = _files(folder, vectors, index_type, how)
        write_manifest(
            folder,
            KIND,
            {
                "format": FORMAT,
                "passages": len(store),
                "dimension": vectors.dimension,
                "index_type": index_type,
                "dtype": dtype,
                "parameters": how.as_dict() if index_type != "flat" else {},
                "encoder": describe_encoder(encoder),
                "indexed": "title + ' ' + text",
                **stored,
                "files": {name: (folder / name).stat().st_size for name in files},
            },
        )
        _drop_working_files(folder, keep=files)
    return IndexInfo(Path(out), len(store), stored["skipped"], tuple(examples))


def describe_encoder(encoder: Encoder) -> dict[str, Any]:
    """What tells later whether an encoder fits an index: the digest of its passage tower, and how it reads."""
    return {
        "source": None if encoder.source is None else _absolute(encoder.source),
        "passage_fingerprint": encoder.tower_fingerprint("passage"),
        "settings": encoder.settings.model_dump(mode="json"),
    }


def _store(
    folder: Path, corpus: str | Path, layout: str | None, skip_bad_rows: bool
) -> tuple[dict[str, Any], Iterable[BadRow]]:
    """Write the passages, unless an earlier run over the same files did; what the manifest says of them."""
    asked = {"corpus": describe_source(corpus), "layout": layout, "skip_bad_rows": skip_bad_rows}
    path = folder / _STORED
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if known.get("asked") == asked:
        return known["stored"], ()
    (folder / STATE).unlink(missing_ok=True)  # vectors of other passages
    report = IngestReport()
    with StoreWriter(folder) as store:
        for _ in ingest(corpus, store, report, layout=layout, skip_bad_rows=skip_bad_rows):
            pass
    stored = {"passages_sha256": store.digest, "skipped": dict(report.skipped), "corpus": asked["corpus"]}
    atomic_write(path, json.dumps({"asked": asked, "stored": stored}))
    return stored, report.examples


def _files(folder: Path, vectors: StoredVectors, index_type: IndexType, how: IndexParameters) -> list[str]:
    """Make the approximate index, if any; names of the files that a finished index keeps."""
    own = [VECTORS] + ([SCALES] if vectors.scales is not None else [])
    if index_type != "flat":
        build_approximate(vectors, index_type, how, folder / FILES[index_type])
        own = [FILES[index_type]]
    return [*own, PASSAGES, OFFSETS, IDS]


def _drop_working_files(folder: Path, keep: Sequence[str]) -> None:
    """The state goes first: a run killed in between must not take vectors that are gone for encoded ones."""
    for name in (STATE, _STORED, VECTORS, SCALES, *FILES.values()):
        if name not in keep:
            (folder / name).unlink(missing_ok=True)


def _check(index_type: str, dtype: str) -> None:
    if index_type not in get_args(IndexType):
        raise ConfigError(f"no index type '{index_type}'", did_you_mean(index_type, get_args(IndexType)))
    if dtype not in DTYPES:
        raise ConfigError(f"vectors cannot be stored as '{dtype}'", did_you_mean(dtype, DTYPES))


def _absolute(source: str) -> str:
    return str(Path(source).resolve()) if Path(source).exists() else source
