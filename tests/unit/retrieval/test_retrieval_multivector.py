"""Multi-vector indexes: exact search is MaxSim, codes and candidates lose what they say, and builds go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retrieval.config import RetrieverSettings
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.family import Encoded
from retrieval.encoders.loading import load_encoder
from retrieval.encoders.pieces import encode_piece
from retrieval.encoders.retriever import EncoderRetriever
from retrieval.multivector.codebook import Codebook, learn, lists_of
from retrieval.multivector.muvera import Muvera, draw
from retrieval.multivector.residual import CodedTokens, ResidualSearch
from retrieval.multivector.retriever import build_multivector, open_multivector
from retrieval.multivector.search import ExactSearch
from retrieval.multivector.tokens import StoredTokens
from retrieval.open import open_retriever
from retrieval.passages import passage_text
from retrieval.store import PassageStore
from sleuth.errors import ArtifactError, ConfigError, DataError, RetrieverError
from sleuth.settings import validate

RANDOM = np.random.default_rng(0)
TYPES: dict[str, dict[str, Any]] = {
    "flat": {},
    "float16": {"dtype": "float16"},
    "residual": {"index_type": "residual", "centroids": 8},
    "muvera": {"index_type": "muvera", "repetitions": 3, "k_sim": 2, "d_proj": 4},
}
QUERIES = ["Arden", "a river", "halls that nobody can tell apart"]


def unit(*shape: int) -> Any:
    vectors = RANDOM.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def stored(lengths: list[int], dimension: int = 8) -> StoredTokens:
    return StoredTokens(unit(sum(lengths), dimension), np.cumsum([0, *lengths]))


def plain(query: Any, tokens: Any) -> Any:
    """MaxSim as it is written: for each token of the query its best product with a passage's, summed."""
    made = []
    for begin, end in zip(tokens.bounds[:-1], tokens.bounds[1:], strict=True):
        vectors = tokens.read(slice(begin, end)).astype(np.float64)
        made.append(sum(max(float(one @ other) for other in vectors) for one in query) if end > begin else -np.inf)
    return np.array(made)


def assert_exact(search: Any, tokens: Any, queries: Any, k: int, atol: float = 1e-5) -> None:
    scores, rows = search.search(queries, k)
    for query, its_scores, its_rows in zip(queries, scores, rows, strict=True):
        expected = plain(query, tokens)
        order = np.argsort(-expected, kind="stable")[:k]
        order = order[expected[order] > -np.inf]
        np.testing.assert_array_equal(its_rows[: len(order)], order)
        np.testing.assert_allclose(its_scores[: len(order)], expected[order], atol=atol)
        assert (its_rows[len(order) :] == -1).all()


@pytest.mark.parametrize("k", [1, 7, 60])
def test_exact_search_is_plain_maxsim(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    """Also over several blocks and groups, where passages are of any length, and where one has no token at all."""
    tokens = stored([*RANDOM.integers(1, 9, 40).tolist(), 0, *RANDOM.integers(1, 30, 19).tolist()])
    queries = [unit(length, 8) for length in (1, 5, 32, 3)]
    assert_exact(ExactSearch(tokens), tokens, queries, k)
    monkeypatch.setattr("retrieval.multivector.search.MOST_TOKENS", 16)
    monkeypatch.setattr("retrieval.multivector.search.QUERY_TOKENS", 6)
    assert_exact(ExactSearch(tokens), tokens, queries, k)
    read: list[int] = []

    class Watched(StoredTokens):
        def read(self, tokens: Any) -> Any:
            found = StoredTokens.read(self, tokens)
            read.append(len(found))
            return found

    ExactSearch(Watched(tokens.vectors, tokens.bounds)).search(queries, k)
    assert max(read) <= 16 + 29  # never all at once, however many are asked for


def test_equal_passages_come_in_order_of_the_corpus_whatever_k() -> None:
    some = [unit(int(n), 8) for n in RANDOM.integers(1, 6, 10)]
    which = np.repeat(np.arange(10), 12)[RANDOM.permutation(120)]
    tokens = StoredTokens(np.concatenate([some[i] for i in which]), np.cumsum([0, *[len(some[i]) for i in which]]))
    queries = [unit(4, 8)]
    rows = ExactSearch(tokens).search(queries, 40)[1][0]
    for k in (1, 11, 12, 13):
        np.testing.assert_array_equal(ExactSearch(tokens).search(queries, k)[1][0], rows[:k])
    for group in (rows[:12], rows[12:24]):
        assert sorted(group.tolist()) == group.tolist()
        assert len(set(which[group])) == 1


def coded(tokens: StoredTokens, bits: int, centroids: int = 20, nprobe: int = 20, candidates: int = 999) -> Any:
    book = learn(tokens.vectors, centroids, bits, unit=True, seed=0)
    codes, residuals = book.encode(tokens.vectors)
    lists, begins = lists_of(codes, tokens.bounds, centroids, block=7)
    search = ResidualSearch(CodedTokens(book, codes, residuals, tokens.bounds), lists, begins, nprobe, candidates)
    return search, lists, begins


def test_unquantised_residuals_with_all_centroids_probed_are_exact() -> None:
    tokens = stored(RANDOM.integers(1, 9, 50).tolist())
    assert_exact(coded(tokens, 32)[0], tokens, [unit(length, 8) for length in (1, 5, 32)], 50)


def test_lists_have_every_passage_at_each_of_its_centroids_once() -> None:
    tokens = stored(RANDOM.integers(0, 9, 50).tolist())
    search, lists, begins = coded(tokens, 1)
    for centroid in range(20):
        having = [i for i in range(50) if centroid in search.tokens.codes[slice(*tokens.bounds[i : i + 2])]]
        assert lists[begins[centroid] : begins[centroid + 1]].tolist() == having


def test_more_bits_are_nearer_and_every_code_is_its_nearest_level() -> None:
    tokens = stored([400], 16)
    away = []
    for bits in (1, 2, 4):
        book = learn(tokens.vectors, 10, bits, unit=True, seed=0)
        codes, residuals = book.encode(tokens.vectors)
        assert residuals.shape == (400, 2 * bits)
        bare = Codebook(book.centroids, book.levels, unit=False).decode(codes, residuals)
        levels = bare - book.centroids[codes]
        wanted = (tokens.vectors - book.centroids[codes])[..., None]
        nearest = book.levels[np.abs(wanted - book.levels).argmin(-1)]
        np.testing.assert_allclose(levels, nearest, atol=1e-6)
        decoded = book.decode(codes, residuals)
        np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1, atol=1e-5)
        away.append(float(1 - (decoded * tokens.vectors).sum(1).mean()))
    assert away[0] > away[1] > away[2]


def test_few_probes_still_give_k_hits() -> None:
    tokens = stored(RANDOM.integers(1, 3, 50).tolist())
    rows = coded(tokens, 2, nprobe=1, candidates=2)[0].search([unit(1, 8)], 30)[1][0]
    assert len(set(rows.tolist())) == 30
    assert rows.min() >= 0


def test_fixed_vectors_are_those_of_the_paper() -> None:
    """Written out for one repetition: sums of a query's tokens a cell, means of a passage's, empty ones filled."""
    cells = draw(Muvera(repetitions=1, k_sim=2, d_proj=3), 8)
    planes, projection = cells.planes[0].numpy(), cells.projections[0].numpy()
    vectors = unit(5, 8)

    def cell(vector: Any) -> list[bool]:
        return [bool(plane @ vector > 0) for plane in planes]

    for_query, for_passage = [], []
    for number in range(4):
        wanted = [bool(number >> bit & 1) for bit in range(2)]
        inside = [v for v in vectors if cell(v) == wanted]
        for_query.append(projection @ np.sum(inside, axis=0) if inside else np.zeros(3))
        away = [sum(a != b for a, b in zip(cell(v), wanted, strict=True)) for v in vectors]
        nearest = vectors[int(np.argmin(away))]
        for_passage.append(projection @ (np.mean(inside, axis=0) if inside else nearest))
    np.testing.assert_allclose(cells.of_query(vectors), np.concatenate(for_query), atol=1e-5)
    padded = torch.cat([torch.from_numpy(vectors), torch.randn(2, 8)])[None]
    mask = torch.tensor([[True] * 5 + [False] * 2])
    np.testing.assert_allclose(cells.of_passages(Encoded(padded, mask))[0], np.concatenate(for_passage), atol=1e-5)


@pytest.fixture(scope="module")
def encoder(colbert_folder: Path) -> Encoder:
    return load_encoder(colbert_folder)


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory, corpus: Path, encoder: Encoder) -> Path:
    path = tmp_path_factory.mktemp("multivector")
    for name, made in TYPES.items():
        build_multivector(corpus, path / name, encoder, shard=4, **made)
    return path


@pytest.fixture(params=TYPES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def bare(chosen: Any) -> EncoderRetriever:
    retriever = open_retriever(chosen, cached=False, resilient=False)
    assert isinstance(retriever, EncoderRetriever)
    return retriever


def test_hits_are_those_of_the_encoder(kind: str, indexes: Path, encoder: Encoder) -> None:
    retriever = bare(indexes / kind)
    passages = list(PassageStore(indexes / kind))
    asked = encoder.encode_texts(QUERIES, "query")
    exact = encoder.family.scores(asked, encoder.encode_texts([passage_text(p) for p in passages], "passage"))
    hits = retriever.search(QUERIES, 11)
    close = {"flat": 1e-4, "float16": 2e-2, "muvera": 1e-4, "residual": 3.0}[kind]
    for found, scores in zip(hits, exact, strict=True):
        assert len(found) == 11
        for hit in found:
            assert hit.score == pytest.approx(float(scores[passages.index(hit.passage)]), abs=close)
    assert retriever.search(["", " "], 2) == [[], []]
    alone = [retriever.search([query], 3)[0] for query in QUERIES]
    for one, other in zip(alone, retriever.search(QUERIES, 3), strict=True):
        assert [hit.passage for hit in one] == [hit.passage for hit in other]


class Killed(BaseException):
    pass


def test_a_killed_build_goes_on_and_ends_as_one_never_broken(
    kind: str, indexes: Path, corpus: Path, encoder: Encoder, tmp_path: Path
) -> None:
    out, seen = tmp_path / "i", []

    def kill(count: int) -> None:
        if count > 4:
            raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            build_multivector(corpus, out, encoder, shard=4, on_progress=kill, **TYPES[kind])
    build_multivector(corpus, out, encoder, shard=4, on_progress=seen.append, **TYPES[kind])
    assert min(seen) > 4
    whole = indexes / kind
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())
    for path in whole.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["i"]


def test_pieces_encoded_elsewhere_are_the_same_index(
    kind: str, indexes: Path, corpus: Path, colbert_folder: Path, tmp_path: Path
) -> None:
    def elsewhere(store: Path, pieces: Any) -> Any:
        other, passages = load_encoder(colbert_folder), PassageStore(store)
        return (encode_piece(passages, other, piece, 3) for piece in pieces)

    build_multivector(corpus, tmp_path / "i", load_encoder(colbert_folder), shard=4, elsewhere=elsewhere, **TYPES[kind])
    for one, other in zip(*(bare(p).search(QUERIES, 6) for p in (tmp_path / "i", indexes / kind)), strict=True):
        assert [hit.passage for hit in one] == [hit.passage for hit in other]
        assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other], rel=1e-5)


def test_any_file_cut_short_is_one_clear_line(kind: str, indexes: Path, encoder: Encoder, tmp_path: Path) -> None:
    index = Path(shutil.copytree(indexes / kind, tmp_path / "i"))
    for name in json.loads((index / "manifest.json").read_text())["files"]:
        content = (index / name).read_bytes()
        (index / name).write_bytes(content[:-1])
        with pytest.raises(ArtifactError, match=rf"{name} is truncated: .* \(rebuild the index") as caught:
            open_multivector(index, encoder)
        assert "--kind multivector" in caught.value.hint
        (index / name).write_bytes(content)


@pytest.mark.parametrize(
    "held", [{"index_type": ["flat"]}, {"index_type": "round"}, {"parameters": "none"}, {"parameters": {"dtype": 3}}]
)
def test_a_manifest_with_something_else_is_one_clear_line(
    indexes: Path, encoder: Encoder, held: dict[str, Any], tmp_path: Path
) -> None:
    index = Path(shutil.copytree(indexes / "flat", tmp_path / "i"))
    manifest = json.loads((index / "manifest.json").read_text())
    (index / "manifest.json").write_text(json.dumps({**manifest, **held}))
    with pytest.raises(ArtifactError, match=rf"is damaged: its entry {next(iter(held))} is not what belongs there"):
        open_multivector(index, encoder)


@pytest.mark.parametrize("index_type", ["flat", "residual", "muvera"])
def test_a_query_without_tokens_finds_nothing_and_costs_no_other_query_its_hits(
    indexes: Path, encoder: Encoder, index_type: str
) -> None:
    index = open_multivector(indexes / index_type, encoder).index
    values, mask = torch.nn.functional.normalize(torch.rand(2, 3, 16), dim=2), torch.ones(2, 3, dtype=torch.bool)
    expected = index.search(Encoded(values[1:], mask[1:]), 2)
    mask[0] = False
    scores, rows = index.search(Encoded(values, mask), 2)
    assert rows[0].tolist() == [-1, -1] and not np.isfinite(scores[0]).any()
    assert np.array_equal(rows[1:], expected[1]) and np.allclose(scores[1:], expected[0])
    assert index.search(Encoded(values[:1], mask[:1]), 2)[1].tolist() == [[-1, -1]]


def test_what_does_not_fit_is_one_clear_line(
    indexes: Path, corpus: Path, encoder: Encoder, encoder_folder: Path, tmp_path: Path
) -> None:
    retriever = open_multivector(indexes / "flat", encoder)
    with pytest.raises(RetrieverError, match=r"shape \(1, 16\) do not fit"):
        retriever.index.search(Encoded(torch.zeros(1, 16)), 1)
    mask = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(RetrieverError, match=r"not finite \(NaN\)"):
        retriever.index.search(Encoded(torch.full((1, 2, 16), torch.nan), mask), 1)
    dense = load_encoder(encoder_folder)
    with pytest.raises(ConfigError, match=r"index of kind multivector, but .* is an encoder of kind dense"):
        open_multivector(indexes / "flat", dense)
    with pytest.raises(ConfigError, match="is an encoder of kind dense"):
        build_multivector(corpus, tmp_path / "i", dense)
    with pytest.raises(ConfigError, match=r"nprobe does not apply to .*, an index of type flat"):
        open_multivector(indexes / "flat", encoder, nprobe=3)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"bits": 2}, "bits does nothing for an index of type flat"),
        ({"index_type": "residual", "dtype": "float16"}, "dtype does nothing for an index of type residual"),
        ({"index_type": "residual", "centroids": 5000}, "centroids is 5,000, more than the .* of 11 passages"),
        ({"index_type": "residual", "bits": 3}, "choose 1, 2, 4, or 32"),
        ({"index_type": "plaid"}, "no index type 'plaid'"),
        ({"index_type": "muvera", "fixed_type": "ivfpq", "repetitions": 1}, "11 are too few, it needs 1,000"),
    ],
)
def test_what_cannot_be_made_says_so(
    corpus: Path, encoder: Encoder, tmp_path: Path, made: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_multivector(corpus, tmp_path / "i", encoder, **made)
    assert not (tmp_path / "i").exists()


def test_a_broken_vector_in_an_index_is_one_clear_line(indexes: Path, encoder: Encoder, tmp_path: Path) -> None:
    index = Path(shutil.copytree(indexes / "flat", tmp_path / "i"))
    bounds = np.load(index / "token_bounds.npy")
    np.load(index / "token_vectors.npy", mmap_mode="r+")[bounds[5]] = np.nan
    with pytest.raises(RetrieverError, match=r"passage 5 of .* is not finite \(NaN\)"):
        open_multivector(index, encoder).search(["river"], 3)
    np.load(index / "token_vectors.npy", mmap_mode="r+")[:] = np.nan
    with pytest.raises(RetrieverError, match=r"passage 0 of .* is not finite \(NaN\)"):
        open_multivector(index, encoder).search(["river"], 3)


@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        ("residual", "centroids.npy", np.nan, "the centroids of .* are damaged"),
        ("residual", "lists.npy", 99, "the lists of .* are damaged"),
        ("residual", "list_bounds.npy", -1, "the lists of .* are damaged"),
        ("muvera", "planes.npy", np.nan, "vectors of fixed dimension of .* are damaged"),
        ("muvera", "scales.npy", np.nan, r"a vector of fixed dimension is not finite \(NaN\)"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_clear_line(
    indexes: Path, encoder: Encoder, tmp_path: Path, kind: str, name: str, value: float, message: str
) -> None:
    index = Path(shutil.copytree(indexes / kind, tmp_path / "i"))
    np.load(index / name, mmap_mode="r+")[:] = value
    with pytest.raises((ArtifactError, RetrieverError), match=message):
        open_multivector(index, encoder).search(["river"], 3)


def test_the_command_that_makes_another_type_has_nothing_of_the_old_one(indexes: Path) -> None:
    wanted = {"index": indexes / "float16", "index_type": "residual", "bits": 1}
    with pytest.raises(ArtifactError, match="has the index_type flat, not residual") as caught:
        bare(validate(RetrieverSettings, wanted, "retriever"))
    assert "--set index_type=residual --set bits=1 --overwrite" in caught.value.hint
    with pytest.raises(ConfigError, match=r"bits does nothing for .*float16"):
        bare(validate(RetrieverSettings, {"index": indexes / "float16", "bits": 1}, "retriever"))


def test_an_encoder_gone_bad_fails_the_build(corpus: Path, colbert_folder: Path, tmp_path: Path) -> None:
    bad = load_encoder(colbert_folder)
    with torch.no_grad():
        next(bad.model.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match=r"not finite \(NaN\)"):
        build_multivector(corpus, tmp_path / "i", bad, index_type="residual")
    assert not (tmp_path / "i").exists()


def test_a_missing_index_is_made_as_the_settings_say(corpus: Path, colbert_folder: Path, tmp_path: Path) -> None:
    values = {"kind": "multivector", "index": tmp_path / "i", "corpus": corpus, "encoder": str(colbert_folder)}
    made = {"index_type": "residual", "bits": 1, "nprobe": 2}
    first = bare(validate(RetrieverSettings, values | made, "retriever"))
    again = bare(validate(RetrieverSettings, {"index": tmp_path / "i", "nprobe": 2}, "retriever"))
    assert first.fingerprint == again.fingerprint != bare(tmp_path / "i").fingerprint
    with pytest.raises(ArtifactError, match="has the bits 1, not 2"):
        bare(validate(RetrieverSettings, values | {"bits": 2}, "retriever"))


def test_explained_tokens_add_up_to_the_score(indexes: Path) -> None:
    retriever = bare(indexes / "flat")
    hits = retriever.search(["the river Ardenwater."], 3)[0]
    for hit, reason in zip(hits, retriever.explain("the river Ardenwater.", hits), strict=True):
        assert sum(part.score for part in reason.parts) == pytest.approx(hit.score, abs=1e-4)
        assert len(reason.parts) == 16 or "[MASK]" not in [part.query_term for part in reason.parts]
        assert "." in [part.query_term for part in reason.parts]  # punctuation counts in queries only
        assert "." not in [part.passage_term for part in reason.parts]
        assert [part.score for part in reason.parts] == sorted((part.score for part in reason.parts), reverse=True)
