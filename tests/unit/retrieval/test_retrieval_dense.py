"""Dense indexes: exact search is exact, a killed run goes on, and what does not fit is refused in one line."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from retrieval.config import RetrieverSettings
from retrieval.dense.approximate import IndexParameters, build_approximate
from retrieval.dense.build import DenseWriter
from retrieval.dense.retriever import build_dense, open_dense
from retrieval.dense.search import FaissSearch, FlatSearch, read_faiss
from retrieval.dense.vectors import StoredVectors, create_vectors, open_vectors
from retrieval.encoders.config import DenseChoice, preset
from retrieval.encoders.encoder import Encoder, separate_towers
from retrieval.encoders.family import Encoded
from retrieval.encoders.loading import load_encoder, new_encoder
from retrieval.encoders.pieces import encode_store
from retrieval.encoders.retriever import EncoderRetriever
from retrieval.open import open_retriever
from retrieval.store import PassageStore
from sleuth.errors import ArtifactError, ConfigError, DataError, RetrieverError
from sleuth.settings import validate

RANDOM = np.random.default_rng(0)


def unit(count: int, dimension: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    vectors = RANDOM.standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def encoder(encoder_folder: Path) -> Encoder:
    return load_encoder(encoder_folder)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, corpus: Path, encoder: Encoder) -> Path:
    path = tmp_path_factory.mktemp("dense") / "i"
    build_dense(corpus, path, encoder, shard=4)
    return path


@pytest.fixture
def copied(dense: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dense, tmp_path / "i"))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("queries", [1, 2, 3, 40])
def test_flat_search_equals_numpy(tmp_path: Path, dtype: Any, queries: int) -> None:
    vectors, asked = unit(900, 24), unit(queries, 24)
    stored = create_vectors(tmp_path, 900, 24, dtype)
    for start in range(0, 900, 250):
        stored.write(start, vectors[start : start + 250])
    stored.flush()
    stored = open_vectors(tmp_path)
    np.testing.assert_allclose(
        stored.read(slice(0, 900)), vectors, atol={"float32": 0, "float16": 3e-4}.get(dtype, 4e-3)
    )
    search = FlatSearch(stored)
    search._block = 256  # several blocks
    expected = asked.astype(np.float64) @ stored.read(slice(0, 900)).astype(np.float64).T
    for k in (1, 7, 900):
        scores, rows = search.search(asked, k)
        best = np.argsort(-expected, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(rows, best)
        np.testing.assert_allclose(scores, np.take_along_axis(expected, best, 1), atol=1e-6)


@pytest.mark.parametrize("queries", [1, 5])
def test_equal_scores_come_in_order_of_the_corpus_whatever_k(queries: int) -> None:
    vectors = np.repeat(unit(40, 8), 50, axis=0)[RANDOM.permutation(2000)]  # fifty copies of each
    search, asked = FlatSearch(StoredVectors(vectors)), unit(queries, 8)
    search._block = 512
    scores, rows = search.search(asked, 120)
    for one_scores, one_rows in zip(scores, rows, strict=True):
        pairs = list(zip(-one_scores, one_rows, strict=True))
        assert pairs == sorted(pairs)
    for k in (1, 3, 49, 50, 51, 99):
        np.testing.assert_array_equal(search.search(asked, k)[1], rows[:, :k])


def test_faiss_own_flat_index_gives_the_same(tmp_path: Path) -> None:
    vectors, asked = unit(500, 16), unit(9, 16)
    index = faiss.IndexFlatIP(16)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "f"))
    scores, rows = FaissSearch(read_faiss(tmp_path / "f")).search(asked, 10)
    ours = FlatSearch(StoredVectors(vectors)).search(asked, 10)
    np.testing.assert_array_equal(rows, ours[1])
    np.testing.assert_allclose(scores, ours[0], atol=1e-6)


@pytest.mark.parametrize(("kind", "least"), [("hnsw", 0.95), ("ivfpq", 0.5)])
def test_approximate_search_finds_most_of_it(tmp_path: Path, kind: Any, least: float) -> None:
    stored, asked = StoredVectors(unit(2000, 16)), unit(30, 16)
    how = IndexParameters(links=16, lists=16, nprobe=8, code_bytes=16)
    build_approximate(stored, kind, how, tmp_path / "f")
    tuned, other = ({"nprobe": 16}, {"ef_search": 16}) if kind == "ivfpq" else ({"ef_search": 100}, {"nprobe": 16})
    search = FaissSearch(read_faiss(tmp_path / "f"), **tuned)
    exact, found = FlatSearch(stored).search(asked, 10)[1], search.search(asked, 10)
    assert (len(search), search.dimension) == (2000, 16)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found[1], strict=True)]) >= least
    assert (np.diff(found[0], axis=1) <= 0).all()
    with pytest.raises(ConfigError, match=f"{next(iter(other))} does not apply to an index of type"):
        FaissSearch(read_faiss(tmp_path / "f"), **other)


def encoded(store: PassageStore, encoder: Encoder, folder: Path) -> Any:
    writer = DenseWriter(folder, len(store), encoder.dimension)
    encode_store(store, encoder, writer, folder)
    return writer.vectors.read(slice(0, len(store)))


def test_shards_do_not_change_the_vectors(dense: Path, encoder: Encoder, tmp_path: Path) -> None:
    store = PassageStore(dense)
    whole = encoded(store, encoder, tmp_path)
    texts = [f"{p.title} {p.text}" for p in store]
    np.testing.assert_allclose(whole, encoder.encode(texts, "passage"), atol=2e-6)
    np.testing.assert_allclose(open_vectors(dense).read(slice(0, len(store))), whole, atol=2e-6)


class Killed(BaseException):
    pass


def test_a_killed_build_goes_on_and_ends_as_one_never_broken(
    dense: Path, corpus: Path, encoder: Encoder, tmp_path: Path
) -> None:
    out, seen = tmp_path / "i", []

    def kill(count: int) -> None:
        if count > 4:
            raise Killed

    for broken in (kill, kill):
        with pytest.raises(Killed):
            build_dense(corpus, out, encoder, shard=4, on_progress=broken)
    assert not out.exists()
    build_dense(corpus, out, encoder, shard=4, on_progress=seen.append)
    assert min(seen) > 4
    assert max(seen) == 11
    assert sorted(p.name for p in tmp_path.iterdir()) == ["i"]
    for name in ("vectors.npy", "passages.jsonl", "manifest.json"):
        assert (out / name).read_bytes() == (dense / name).read_bytes()
    queries = ["Arden", "river", "halls"]
    assert open_dense(out, encoder).search(queries, 5) == open_dense(dense, encoder).search(queries, 5)


@pytest.mark.parametrize("index_type", ["flat", "hnsw"])
def test_a_build_killed_while_it_tidies_up_ends_as_one_never_broken(
    corpus: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index_type: Any
) -> None:
    build_dense(corpus, tmp_path / "whole", encoder, index_type=index_type)
    unlink = Path.unlink
    for survived in range(4):
        left = survived

        def kill(path: Path, missing_ok: bool = False) -> None:
            nonlocal left
            if ".i.part" in str(path) and path.exists() and (left := left - 1) < 0:
                raise Killed
            unlink(path, missing_ok)

        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(Path, "unlink", kill)
            build_dense(corpus, tmp_path / "i", encoder, index_type=index_type, overwrite=True)
        build_dense(corpus, tmp_path / "i", encoder, index_type=index_type, overwrite=True)
        found, expected = (
            open_dense(tmp_path / name, encoder).search(["Arden", "river"], 3) for name in ("i", "whole")
        )
        assert found == expected
        assert {p.name for p in (tmp_path / "i").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


def test_a_state_without_its_vectors_is_not_believed(dense: Path, encoder: Encoder, tmp_path: Path) -> None:
    store = PassageStore(dense)
    whole = encoded(store, encoder, tmp_path).copy()
    (tmp_path / "vectors.npy").unlink()
    np.testing.assert_array_equal(encoded(store, encoder, tmp_path), whole)


def test_a_build_of_other_things_does_not_take_up_the_broken_one(
    corpus: Path, encoder: Encoder, backbone: Path, tmp_path: Path
) -> None:
    def kill(count: int) -> None:
        if count > 4:
            raise Killed

    with pytest.raises(Killed):
        build_dense(corpus, tmp_path / "i", encoder, shard=4, on_progress=kill)
    other = new_encoder(preset("plain", str(backbone), passage_max_tokens=20, query_max_tokens=20))
    build_dense(corpus, tmp_path / "i", other, shard=4)
    store = PassageStore(tmp_path / "i")
    expected = other.encode([f"{p.title} {p.text}" for p in store], "passage")
    np.testing.assert_allclose(open_vectors(tmp_path / "i").read(slice(0, len(store))), expected, atol=2e-6)


def test_hits_have_the_passages_of_their_vectors(dense: Path, encoder: Encoder) -> None:
    retriever = open_dense(dense, encoder)
    for passage in list(retriever.passages)[:6]:  # type: ignore[call-overload]
        first = retriever.search([f"{passage.title} {passage.text}"], 3)[0][0]
        assert first.passage == passage
        assert first.score == pytest.approx(1, abs=1e-4)
    assert len(retriever) == 11


def test_empty_and_enormous_queries(dense: Path, encoder: Encoder) -> None:
    retriever = open_dense(dense, encoder)
    long = "river " * 17_000
    empty, found, blank = retriever.search(["", long, " \n"], 2)
    assert (empty, blank) == ([], [])
    assert [hit.passage for hit in found] == [hit.passage for hit in retriever.search(["river " * 100], 2)[0]]
    assert len(retriever.search(["x" * 100_000], 2)[0]) == 2


def test_vectors_that_do_not_fit_are_one_clear_line(dense: Path, encoder: Encoder) -> None:
    retriever = open_dense(dense, encoder)
    with pytest.raises(RetrieverError, match=r"shape \(1, 3\) do not fit .* \(its vectors have 64 dimensions\)"):
        retriever.index.search(Encoded(torch.zeros(1, 3)), 1)
    with pytest.raises(RetrieverError, match=r"is not finite \(NaN\)"):
        retriever.index.search(Encoded(torch.full((1, 64), torch.nan)), 1)


@pytest.mark.parametrize("queries", [1, 4])
def test_a_broken_vector_in_an_index_is_one_clear_line(copied: Path, encoder: Encoder, queries: int) -> None:
    np.load(copied / "vectors.npy", mmap_mode="r+")[5] = np.nan
    retriever = open_dense(copied, encoder)
    with pytest.raises(RetrieverError, match=r"vector 5 of .* is not finite \(NaN\)"):
        retriever.search([f"river {n}" for n in range(queries)], 11)


def test_an_encoder_gone_bad_fails_the_search_and_the_build(dense: Path, corpus: Path, encoder_folder: Path) -> None:
    bad = load_encoder(encoder_folder)
    retriever = open_dense(dense, bad)
    with torch.no_grad():
        next(bad.model.parameters()).fill_(float("nan"))
    with pytest.raises(RetrieverError, match=r"not finite \(NaN\)"):
        retriever.search(["Arden"], 1)
    with pytest.raises(DataError, match=r"not finite \(NaN\) for 11 of 11 texts"):
        build_dense(corpus, dense.parent / "bad", bad)
    assert not (dense.parent / "bad").exists()


def test_another_encoder_is_refused_with_the_difference_and_the_command(
    dense: Path, corpus: Path, encoder: Encoder, encoder_folder: Path, backbone: Path
) -> None:
    prompted = load_encoder(DenseChoice(backbone=str(encoder_folder), passage_prompt="passage: "))
    with pytest.raises(ArtifactError, match="its passage_prompt is 'passage: ', the index has ''") as caught:
        open_dense(dense, prompted)
    command = f"sleuth index {corpus} --out {dense} --kind dense --encoder {encoder_folder} --overwrite"
    assert command in caught.value.hint
    other = Encoder(load_encoder(encoder_folder).model, encoder.settings, encoder.family)
    with torch.no_grad():
        next(iter(other.model.parameters())).add_(0.1)
    with pytest.raises(ArtifactError, match="its weights or its tokenizer differ"):
        open_dense(dense, other)
    small = new_encoder(preset("dpr", str(backbone), query_max_tokens=32, passage_max_tokens=48))
    with pytest.raises(ArtifactError, match="its pooling is 'cls', the index has 'mean'"):
        open_dense(dense, small)


def test_a_new_query_tower_searches_the_old_index(dense: Path, encoder_folder: Path) -> None:
    split = separate_towers(load_encoder(encoder_folder))
    same = open_dense(dense, split)
    with torch.no_grad():
        next(split.tower("query").parameters()).add_(0.5)
    moved = open_dense(dense, split)
    assert moved.fingerprint != same.fingerprint
    before, after = (r.search(["river"], 3)[0] for r in (open_dense(dense, load_encoder(encoder_folder)), moved))
    assert [hit.score for hit in before] != [hit.score for hit in after]


@pytest.mark.parametrize("name", ["vectors.npy", "passages.jsonl", "passages.ids.npy"])
def test_a_file_cut_short_is_one_clear_line(copied: Path, encoder: Encoder, name: str) -> None:
    path = copied / name
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 10)
    with pytest.raises(
        ArtifactError, match=rf"{name} is truncated: {size - 10:,} of {size:,} bytes \(rebuild the index"
    ):
        open_dense(copied, encoder)


def test_a_cut_faiss_file_is_one_clear_line(tmp_path: Path) -> None:
    build_approximate(StoredVectors(unit(300, 8)), "hnsw", IndexParameters(links=4), tmp_path / "f")
    with (tmp_path / "f").open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(ArtifactError, match="is not a valid faiss index") as caught:
        read_faiss(tmp_path / "f")
    assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError, match="no faiss index at"):
        read_faiss(tmp_path / "g")


def settings(**values: Any) -> RetrieverSettings:
    return validate(RetrieverSettings, values, "retriever")


def bare(chosen: RetrieverSettings | Path) -> EncoderRetriever:
    retriever = open_retriever(chosen, cached=False, resilient=False)
    assert isinstance(retriever, EncoderRetriever)
    return retriever


def test_a_bare_path_knows_its_encoder_and_a_missing_index_is_made(
    corpus: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    made = bare(settings(index=tmp_path / "i", corpus=corpus, encoder=str(encoder_folder), dtype="float16"))
    again = bare(tmp_path / "i")
    assert again.fingerprint == made.fingerprint
    assert again.search(["Arden"], 2) == made.search(["Arden"], 2)
    with pytest.raises(ArtifactError, match=r"has the dtype float16, not int8 .*--set dtype=int8 --overwrite"):
        bare(settings(kind="dense", index=tmp_path / "i", dtype="int8"))


def test_a_corpus_changed_after_indexing_is_refused(corpus: Path, encoder_folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "corpus.jsonl"
    own.write_text(corpus.read_text())
    chosen = settings(kind="dense", index=tmp_path / "i", corpus=own, encoder=str(encoder_folder))
    bare(chosen)
    own.write_text(corpus.read_text().replace("Arden", "Ardem"))
    os.utime(own, (1, 1))
    command = f"sleuth index {own} --out {tmp_path / 'i'} --kind dense --encoder {encoder_folder} --overwrite"
    with pytest.raises(ArtifactError, match="was made from other passages than") as caught:
        bare(chosen)
    assert command in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": None}, "no encoder is named to make it with"),
        ({"index_type": "ivfpq"}, "11 are too few, it needs 1,000"),
    ],
)
def test_what_cannot_be_made_says_so(
    corpus: Path, encoder_folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    values = {"kind": "dense", "index": tmp_path / "i", "corpus": corpus, "encoder": str(encoder_folder)}
    with pytest.raises(ConfigError, match=message):
        bare(settings(**(values | change)))
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "bm25", "index": "i", "encoder": "e"}, "encoder does nothing for a retriever of kind bm25"),
        ({"kind": "dense", "index": "i", "k1": 1.0}, "k1 does nothing for a retriever of kind dense"),
        ({"kind": "faiss", "faiss_file": "f", "corpus": "c"}, "encoder is missing"),
        ({"kind": "faiss", "corpus": "c", "encoder": "e"}, "faiss_file is missing"),
        ({"kind": "dense", "index": "i", "index_type": "pq"}, "'flat', 'hnsw' or 'ivfpq'"),
    ],
)
def test_settings_that_do_not_belong_together(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**values)


def test_two_builds_of_one_index_do_not_meet(corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    def second(count: int) -> None:
        with pytest.raises(ArtifactError, match="another process is writing"):
            build_dense(corpus, tmp_path / "i", encoder)

    build_dense(corpus, tmp_path / "i", encoder, on_progress=second)
    with pytest.raises(ArtifactError, match="exists already"):
        build_dense(corpus, tmp_path / "i", encoder)
    build_dense(corpus, tmp_path / "i", encoder, overwrite=True)


@pytest.mark.parametrize(("key", "value"), [("format", 99), ("kind", "bm25")])
def test_a_manifest_of_another_kind_or_format(copied: Path, encoder: Encoder, key: str, value: Any) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps(manifest | {key: value}))
    with pytest.raises(ArtifactError, match="sleuth index CORPUS --out"):
        open_dense(copied, encoder)
