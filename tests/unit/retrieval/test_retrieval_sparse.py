"""Indexes of learned sparse weights: exact, the same after a kill, and what does not fit is refused in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retrieval.config import RetrieverSettings
from retrieval.encoders.config import ScratchSettings, preset
from retrieval.encoders.encoder import Encoder, separate_towers
from retrieval.encoders.family import Encoded
from retrieval.encoders.loading import load_encoder, new_encoder
from retrieval.encoders.pieces import encode_pieces
from retrieval.encoders.scratch import make_backbone
from retrieval.open import open_retriever
from retrieval.sparse.build import SparseWriter
from retrieval.sparse.postings import open_postings
from retrieval.sparse.retriever import SPARSE_INDEX, SparseIndex, build_sparse, open_sparse
from retrieval.sparse.search import PostingSearch, best_places
from retrieval.store import PassageStore
from sleuth.errors import ArtifactError, ConfigError, DataError, RetrieverError
from sleuth.protocols import Explains
from sleuth.settings import validate
from sleuth.types import Passage

RANDOM = np.random.default_rng(0)


def sparse_weights(count: int, words: int, each: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    weights = RANDOM.gamma(2.0, 0.5, (count, words)).astype(np.float32)
    return weights * (RANDOM.random((count, words)) < each / words)


def stored(folder: Path, weights: Any, kept: Any = "uint8", piece: int = 30_000) -> PostingSearch:
    folder.mkdir(exist_ok=True)
    writer = SparseWriter(folder, len(weights), weights.shape[1], kept)
    for start in range(0, len(weights), piece):
        writer.write(start, Encoded(torch.from_numpy(weights[start : start + piece])))
    writer.finish()
    return PostingSearch(open_postings(folder, len(weights)))


@pytest.fixture(scope="session")
def masked_lm(tmp_path_factory: pytest.TempPathFactory, passages: list[Passage]) -> Path:
    path = tmp_path_factory.mktemp("masked") / "lm"
    texts = [f"{p.title} {p.text[:200]}" for p in passages]
    size = {"vocabulary": 300, "hidden_size": 32, "layers": 1, "heads": 2, "max_positions": 64, "masked_lm": True}
    make_backbone(path, texts, ScratchSettings.model_validate(size))
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, masked_lm: Path) -> Encoder:
    path = tmp_path_factory.mktemp("sparse") / "encoder"
    new_encoder(preset("splade", str(masked_lm), query_max_tokens=32, passage_max_tokens=48)).save(path)
    return load_encoder(path)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, corpus: Path, encoder: Encoder) -> Path:
    path = tmp_path_factory.mktemp("sparse") / "i"
    build_sparse(corpus, path, encoder, shard=4)
    return path


@pytest.fixture
def copied(index: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(index, tmp_path / "i"))


def same_files(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("kept", ["uint8", "float32"])
def test_scores_are_inner_products_of_what_is_kept(tmp_path: Path, kept: str) -> None:
    """Over two blocks of passages, against numpy in float64; 8 bits are half a step from the weights."""
    weights, queries = sparse_weights(70_000, 30, 3), sparse_weights(5, 30, 6)
    search = stored(tmp_path / "p", weights, kept)
    held = search.postings.as_kept(weights)
    step = 0.0 if search.postings.scales is None else search.postings.scales.max()
    assert np.abs(held - weights).max() <= max(step, 0) * 1.001
    assert ((held > 0) == (weights > 0)).all()
    expected = queries.astype(np.float64) @ held.astype(np.float64).T
    for k in (1, 10, 1200):
        scores, rows = search.search(queries, k)
        best = np.argsort(-expected, axis=1, kind="stable")[:, :k]
        np.testing.assert_allclose(scores, np.take_along_axis(expected, best, 1), rtol=1e-6)
        np.testing.assert_allclose(np.take_along_axis(expected, rows, 1), scores, rtol=1e-6)


def test_equal_scores_come_in_order_of_the_corpus_whatever_k(tmp_path: Path) -> None:
    weights = np.repeat(sparse_weights(10, 12, 4), 40, axis=0)[RANDOM.permutation(400)]
    search, queries = stored(tmp_path / "p", weights, piece=70), sparse_weights(4, 12, 5)
    _, rows = search.search(queries, 400)
    for k in (1, 3, 39, 41, 200):
        scores, some = search.search(queries, k)
        np.testing.assert_array_equal(some, rows[:, :k])
        for one, places in zip(scores, some, strict=True):
            pairs = [(-score, row) for score, row in zip(one, places, strict=True) if row >= 0]
            assert pairs == sorted(pairs)


def test_a_passage_without_a_word_of_the_query_is_not_found(tmp_path: Path) -> None:
    weights = np.zeros((3, 4), np.float32)
    weights[1, 2] = 0.5
    search = stored(tmp_path / "p", weights)
    scores, rows = search.search(np.array([[0, 0, 2, 0], [1, 0, 0, 0], [0, 0, -1, 0]], np.float32), 3)
    assert rows.tolist() == [[1, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    assert scores[0, 0] == pytest.approx(1.0)
    assert best_places(np.zeros(200), 5).tolist() == []


def test_hits_are_those_of_the_encoder_itself(index: Path, encoder: Encoder, passages: list[Passage]) -> None:
    retriever, queries = open_sparse(index, encoder), ["the town on the river Brillwater", "two halls", "éclairs"]
    scores = encoder.family.scores(encoder.encode_texts(queries, "query"), encoder.encode_passages(passages)).numpy()
    for query, found, expected in zip(queries, retriever.search(queries, len(passages)), scores, strict=True):
        assert [hit.rank for hit in found] == list(range(1, len(found) + 1))
        by_id = {hit.passage.id: hit.score for hit in found}
        for passage, score in zip(passages, expected.tolist(), strict=True):
            assert by_id.get(passage.id, 0.0) == pytest.approx(score, rel=0.01), query
    assert retriever.search(["", "  "], 2) == [[], []]
    assert len(retriever.search(["town " * 100_000], 2)[0]) == 2
    assert retriever.search(queries, 12) == retriever.search(queries, 11)


def test_parts_of_an_explanation_add_up_to_the_score(index: Path, encoder: Encoder) -> None:
    retriever = open_sparse(index, encoder)
    hits = retriever.search(["the river of Corvo"], 3)[0]
    assert isinstance(retriever, Explains)
    for hit, reason in zip(hits, retriever.explain("the river of Corvo", hits), strict=True):
        parts = [part.score for part in reason.parts]
        assert sum(parts) == pytest.approx(hit.score, rel=1e-4)
        assert parts == sorted(parts, reverse=True)
        assert {part.query_term for part in reason.parts} <= set(encoder.model.tokenizer.get_vocab())


class Killed(Exception):  # noqa: N818
    pass


def test_a_killed_build_goes_on_and_ends_with_the_same_bytes(corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    def build(out: str, kill_at: int | None = None, shard: int = 4) -> list[int]:
        encoded: list[int] = []

        def report(done: int) -> None:
            encoded.append(done)
            if kill_at is not None and done > kill_at:
                raise Killed

        build_sparse(corpus, tmp_path / out, encoder, shard=shard, on_progress=report)
        return encoded

    build("whole")
    with pytest.raises(Killed):
        build("broken", 10)
    assert min(build("broken")) > 8
    same_files(tmp_path / "whole", tmp_path / "broken")
    with pytest.raises(Killed):
        build("other", 9, shard=3)  # runs of other pieces are not taken for those of these
    build("other")
    same_files(tmp_path / "whole", tmp_path / "other")
    with pytest.raises(Killed):
        build("lost", 9)
    next((tmp_path / ".lost.part").glob("run-*4.npz")).unlink()
    assert min(build("lost")) <= 4
    same_files(tmp_path / "whole", tmp_path / "lost")


def test_pieces_encoded_elsewhere_make_the_same_index(
    corpus: Path, encoder: Encoder, index: Path, tmp_path: Path
) -> None:
    def elsewhere(folder: Path, pieces: Any) -> Any:
        return encode_pieces(PassageStore(folder), encoder, pieces, 32)

    build_sparse(corpus, tmp_path / "i", encoder, shard=4, elsewhere=elsewhere)
    same_files(index, tmp_path / "i")


def test_what_does_not_fit_is_refused(
    index: Path, copied: Path, corpus: Path, encoder: Encoder, encoder_folder: Path, masked_lm: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"is an index of kind sparse, but .* is an encoder of kind dense"):
        open_sparse(index, load_encoder(encoder_folder))
    with pytest.raises(ConfigError, match="weights cannot be stored as 'int4'"):
        build_sparse(corpus, tmp_path / "x", encoder, weights="int4")
    other = new_encoder(preset("splade", str(masked_lm), passage_max_tokens=48, special_tokens="pooled"))
    with pytest.raises(ArtifactError, match=r"its special_tokens is 'pooled', the index has 'masked'"):
        open_sparse(index, other)
    for name in ("rows.npy", "weights.npy", "starts.npy", "scales.npy", "passages.jsonl"):
        os.truncate(copied / name, (copied / name).stat().st_size - 1)
        with pytest.raises(ArtifactError, match=rf"{name} is truncated: .*") as caught:
            open_sparse(copied, encoder)
        assert "sleuth index" in str(caught.value)
        shutil.copy(index / name, copied / name)
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(ArtifactError, match="has format 99, this version reads 1"):
        open_sparse(copied, encoder)


def test_damaged_weights_are_refused(tmp_path: Path, masked_lm: Path, corpus: Path) -> None:
    broken = new_encoder(preset("splade", str(masked_lm), query_max_tokens=32, passage_max_tokens=48))
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match="not finite"):
        build_sparse(corpus, tmp_path / "i", broken)
    with pytest.raises(DataError, match="a weight below 0"):
        stored(tmp_path / "negative", -np.ones((2, 3), np.float32))
    weights = np.ones((3, 4), np.float32)
    search = stored(tmp_path / "nan", weights, "float32")
    found = SparseIndex(search, "the index")
    with pytest.raises(RetrieverError, match="not finite"):
        found.search(Encoded(torch.full((1, 4), float("nan"))), 2)
    with pytest.raises(RetrieverError, match="its vocabulary has 4 words"):
        found.search(Encoded(torch.ones(1, 5)), 2)
    codes = np.load(tmp_path / "nan" / "weights.npy")
    codes[3] = np.nan
    np.save(tmp_path / "nan" / "weights.npy", codes)
    damaged = SparseIndex(PostingSearch(open_postings(tmp_path / "nan", 3)), "the index")
    with pytest.raises(RetrieverError, match="the index: a weight of the index is not finite"):
        damaged.search(Encoded(torch.ones(1, 4)), 2)
    codes[3] = np.inf
    np.save(tmp_path / "nan" / "weights.npy", codes)
    with pytest.raises(RetrieverError, match="not finite"):
        SparseIndex(PostingSearch(open_postings(tmp_path / "nan", 3)), "the index").search(Encoded(torch.ones(1, 4)), 2)
    np.save(tmp_path / "nan" / "weights.npy", codes[:5])
    with pytest.raises(ArtifactError, match="do not fit together"):
        open_postings(tmp_path / "nan", 3)


@pytest.mark.parametrize(("name", "value"), [("rows.npy", 60_000), ("starts.npy", 99), ("starts.npy", -1)])
def test_postings_that_point_nowhere_are_refused(tmp_path: Path, name: str, value: int) -> None:
    """They would be added up outside of the scores' memory."""
    stored(tmp_path / "p", np.ones((3, 4), np.float32))
    np.load(tmp_path / "p" / name, mmap_mode="r+")[..., 1:-1] = value
    with pytest.raises(ArtifactError, match="do not fit together"):
        open_postings(tmp_path / "p", 3)


def test_a_run_cut_short_is_written_again(tmp_path: Path) -> None:
    weights = Encoded(torch.ones(4, 3))
    for size in (0, 100):
        writer = SparseWriter(tmp_path, 8, 3)
        for start in (0, 4):
            writer.write(start, weights)
        (tmp_path / "encoded.json").write_text(json.dumps({"done": 8}))
        assert SparseWriter(tmp_path, 8, 3).intact
        os.truncate(sorted(tmp_path.glob("run-*"))[1], size)
        assert not SparseWriter(tmp_path, 8, 3).intact


@pytest.mark.parametrize("entry", ["passages", "passages_sha256", "indexed", "encoder", "corpus", "files", "weights"])
def test_a_manifest_that_lacks_something_is_one_clear_line(copied: Path, encoder: Encoder, entry: str) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest[entry]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    told = rf"manifest.json is damaged: its entry {entry} is not what belongs there \(rebuild it with: sleuth index"
    with pytest.raises(ArtifactError, match=told):
        open_sparse(copied, encoder)


@pytest.mark.parametrize("held", [{"corpus": {}}, {"encoder": {"source": 3}}, {"files": {"a": "b"}}, {"weights": [8]}])
def test_a_manifest_with_something_else_is_one_clear_line(copied: Path, encoder: Encoder, held: dict[str, Any]) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps({**manifest, **held}))
    with pytest.raises(ArtifactError, match=rf"manifest.json is damaged: its entry {next(iter(held))} is not"):
        open_sparse(copied, encoder)


def test_a_damaged_passage_is_one_clear_line(copied: Path, encoder: Encoder) -> None:
    size = (copied / "passages.jsonl").stat().st_size
    (copied / "passages.jsonl").write_bytes(b"\xff" * size)
    with pytest.raises(ArtifactError, match=r"a passage of .* is damaged"):
        open_sparse(copied, encoder).search(["town"], 1)


def test_one_line_of_settings_makes_opens_and_combines_it(
    corpus: Path, encoder: Encoder, index: Path, tmp_path: Path
) -> None:
    values = {"index": str(tmp_path / "i"), "encoder": str(encoder.source), "corpus": str(corpus)}
    made = open_retriever(validate(RetrieverSettings, values, "test"), resilient=False, cached=False)
    opened = open_retriever(index, resilient=False, cached=False)
    for one, other in zip(made.search(["town"], 3)[0], opened.search(["town"], 3)[0], strict=True):
        assert one.passage == other.passage
        assert one.score == pytest.approx(other.score, rel=0.02)  # other batches: a code may be one off
    both = open_retriever(
        validate(RetrieverSettings, {"kind": "hybrid", "parts": [str(index), str(tmp_path / "i")]}, "test"),
        resilient=False,
        cached=False,
    )
    assert [hit.passage.id for hit in both.search(["town"], 1)[0]] == [opened.search(["town"], 1)[0][0].passage.id]
    wrong = validate(RetrieverSettings, {"index": str(index), "weights": "float32"}, "test")
    with pytest.raises(ArtifactError, match="has the weights uint8, not float32"):
        open_retriever(wrong)
    assert SPARSE_INDEX.kind == "sparse"


def test_a_new_query_tower_searches_the_old_index(index: Path, encoder: Encoder) -> None:
    other = separate_towers(encoder)
    with torch.no_grad():
        for weight in other.tower("query").parameters():
            weight.add_(0.01)
    assert open_sparse(index, other).fingerprint != open_sparse(index, encoder).fingerprint
