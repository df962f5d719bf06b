"""Indexes that others made open as they are: faiss files beside Search-R1's corpus, Lucene folders with raw rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from retrieval.config import RetrieverSettings
from retrieval.dense.published import CorpusLines, _scan
from retrieval.encoders.config import DenseChoice, ScratchSettings, preset
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.loading import load_encoder, new_encoder
from retrieval.encoders.scratch import make_backbone
from retrieval.jvm import import_on_jvm
from retrieval.open import open_retriever
from sleuth.errors import ArtifactError, ConfigError, DataError
from sleuth.protocols import Retriever
from sleuth.settings import validate

NAMES = [f"{a}{b}{c}" for a in "BDGKM" for b in "aeo" for c in ("lin", "ster")]
ROWS = [{"id": str(i), "contents": f'"{name}"\n{name} is a town with {i} halls.'} for i, name in enumerate(NAMES)]


PROMPTS = {"query_prompt": "query: ", "passage_prompt": "passage: "}


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that knows the names, and not its prompts, as Search-R1's does not."""
    folder = tmp_path_factory.mktemp("e5")
    shape = ScratchSettings(vocabulary=300, hidden_size=64, layers=1, heads=2, max_positions=64)
    make_backbone(folder / "bert", [row["contents"] for row in ROWS] + ["query: passage: different prompt"], shape)
    new_encoder(preset("plain", str(folder / "bert"), query_max_tokens=32, passage_max_tokens=48)).save(folder / "e")
    return folder / "e"


@pytest.fixture(scope="module")
def encoder(encoder_folder: Path) -> Encoder:
    return load_encoder(DenseChoice(backbone=str(encoder_folder), **PROMPTS))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Path:
    """Search-R1's layout in small: the jsonl, and vectors of "passage: " + contents in a flat and an HNSW file."""
    folder = tmp_path_factory.mktemp("release")
    (folder / "wiki-18.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    vectors = encoder.encode([row["contents"] for row in ROWS], "passage")
    hnsw = faiss.IndexHNSWFlat(encoder.dimension, 8, faiss.METRIC_INNER_PRODUCT)
    for name, index in (("flat", faiss.IndexFlatIP(encoder.dimension)), ("hnsw", hnsw)):
        index.add(vectors)
        faiss.write_index(index, str(folder / f"e5_{name}.index"))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLEUTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(release: Path, encoder_folder: Path, **changes: Any) -> Retriever:
    values = {
        "kind": "faiss",
        "faiss_file": release / "e5_flat.index",
        "corpus": release / "wiki-18.jsonl",
        "encoder": {"backbone": str(encoder_folder), **PROMPTS},
    }
    return open_retriever(validate(RetrieverSettings, values | changes, "r"), cached=False, resilient=False)


@pytest.mark.parametrize("name", ["flat", "hnsw"])
def test_a_published_faiss_index_opens_as_it_is(
    release: Path, encoder_folder: Path, encoder: Encoder, name: str
) -> None:
    retriever = opened(release, encoder_folder, faiss_file=release / f"e5_{name}.index")
    queries = [f"halls of {name}" for name in NAMES[:7]]
    found = retriever.search(queries, 3)
    vectors = encoder.encode([row["contents"] for row in ROWS], "passage")
    scores = encoder.encode(queries, "query") @ vectors.T
    expected = np.argsort(-scores, axis=1)[:, :3]
    assert [[hit.passage.id for hit in hits] for hits in found] == [[str(row) for row in rows] for rows in expected]
    first = found[0][0]
    assert first.passage.title == NAMES[int(first.passage.id)]
    assert first.passage.text.startswith(f"{first.passage.title} is a town")
    assert first.score == pytest.approx(scores[0].max(), abs=1e-5)
    assert sorted(p.name for p in release.iterdir()) == ["e5_flat.index", "e5_hnsw.index", "wiki-18.jsonl"]


def test_what_made_the_vectors_is_checked(release: Path, encoder_folder: Path) -> None:
    message = (
        r"are not those of .* for its passages \(cosine 0\.\d+\): they are from another encoder, pooling or prompt"
    )
    wrong = {"backbone": str(encoder_folder), "passage_prompt": "different prompt different prompt: "}
    with pytest.raises(ArtifactError, match=message):
        opened(release, encoder_folder, encoder=wrong)


def test_what_does_not_fit_is_one_clear_line(release: Path, encoder_folder: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:-1]))
    with pytest.raises(ArtifactError, match="has 30 vectors for 29 passages"):
        opened(release, encoder_folder, corpus=fewer)
    other = faiss.IndexFlatIP(7)
    other.add(np.zeros((30, 7), np.float32))
    faiss.write_index(other, str(tmp_path / "small.index"))
    with pytest.raises(ArtifactError, match=r"have 7 dimensions, those of the encoder .* 64"):
        opened(release, encoder_folder, faiss_file=tmp_path / "small.index")
    (tmp_path / "cut.index").write_bytes((release / "e5_flat.index").read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="is not a valid faiss index"):
        opened(release, encoder_folder, faiss_file=tmp_path / "cut.index")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"empty\.jsonl has no passages"):
        opened(release, encoder_folder, corpus=tmp_path / "empty.jsonl")
    with pytest.raises(ConfigError, match="nprobe does not apply to an index of type IndexFlat"):
        opened(release, encoder_folder, nprobe=3)


@pytest.mark.parametrize("name", ["wiki-18.jsonl.gz", "wiki-18.jsonl.zst", "wiki-18.tsv", "wiki-18.parquet"])
def test_rows_are_found_by_their_place_in_plain_json_lines_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(ArtifactError, match=r"is not a single plain \.jsonl file"):
        CorpusLines(tmp_path / name)
    (tmp_path / "wiki.jsonl").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(DataError, match="is a gzip file"):
        CorpusLines(tmp_path / "wiki.jsonl")


@pytest.mark.parametrize("text", ["a\nb\n", "a\nb", "\na\n\n  \nb\r\n\n", "a", "long line here\nb"])
@pytest.mark.parametrize("block", [1, 3, 100])
def test_lines_are_found_whatever_the_blocks(tmp_path: Path, text: str, block: int) -> None:
    import mmap

    path = tmp_path / "c.jsonl"
    path.write_bytes(text.encode())
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    found = [mapped[start:end].strip() for start, end in _scan(mapped, block).tolist()]
    assert found == [line.strip().encode() for line in text.split("\n") if line.strip()]


def test_line_bounds_are_kept_for_the_same_file_only(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert len(CorpusLines(path)) == len(CorpusLines(path)) == len(ROWS)
    assert len(list((cache / "lines").iterdir())) == 1
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:3]))
    lines = CorpusLines(path)
    assert [lines[i].title for i in range(len(lines))] == NAMES[:3]


def test_a_lucene_index_made_elsewhere_opens_as_it_is(tmp_path: Path) -> None:
    raw = [*ROWS, {"_id": "beir", "title": "Title", "text": "A quartz mine."}]
    rows = [{"id": row.get("id", row.get("_id")), **row} for row in raw]
    rows[-1]["contents"] = "Title A quartz mine."
    arguments = ["-index", str(tmp_path / "lucene"), "-storeRaw"]
    indexer = import_on_jvm("pyserini.index.lucene").LuceneIndexer(args=arguments, threads=1)
    indexer.add_batch_raw([json.dumps(row) for row in rows])
    indexer.close()
    chosen = validate(RetrieverSettings, {"kind": "lucene", "index": tmp_path / "lucene", "k1": 1.2, "b": 0.7}, "r")
    retriever = open_retriever(chosen, cached=False, resilient=False)
    mine, town, nothing, empty = retriever.search(["quartz", NAMES[4], "zzz", " "], 2)
    assert (nothing, empty) == ([], [])
    assert (mine[0].passage.id, mine[0].passage.title, mine[0].passage.text) == ("beir", "Title", "A quartz mine.")
    assert town[0].passage.title == NAMES[4]
    assert retriever.search(["town"], 1)[0][0].rank == 1
    assert retriever.fingerprint != open_retriever(chosen.model_copy(update={"k1": 2.0})).fingerprint
    assert retriever.search(["town"], 99) == retriever.search(["town"], len(ROWS))
    with pytest.raises(ConfigError, match="k is 0"):
        retriever.search(["x"], 0)


def test_a_folder_without_lucene_or_raw_rows_is_one_clear_line(tmp_path: Path, index: Path) -> None:
    for folder, message in ((tmp_path, "is not a Lucene index"), (index / "lucene", "has no raw documents")):
        with pytest.raises(ArtifactError, match=message):
            open_retriever(RetrieverSettings.of(kind="lucene", index=folder))
