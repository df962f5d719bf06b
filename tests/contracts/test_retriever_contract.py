"""What every retriever keeps to. A new one joins by one line in IMPLEMENTATIONS."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from retrieval.bm25 import BM25Retriever, build_bm25
from retrieval.cache import CachedRetriever
from retrieval.combine.hybrid import HybridRetriever
from retrieval.combine.rerank import RerankRetriever
from retrieval.config import RetrieverSettings
from retrieval.encoders.config import ScratchSettings, preset
from retrieval.encoders.loading import new_encoder
from retrieval.encoders.scratch import make_backbone
from retrieval.open import open_retriever
from retrieval.resilient import ResilientRetriever
from retrieval.service.remote import RemoteRetriever
from sleuth.errors import ConfigError, RetrieverError
from sleuth.protocols import Retriever
from sleuth.types import Passage

PASSAGES = [
    Passage(f"p{number}", f"Town {name}", f"{name} lies on the river {name}water and makes {ware}.")
    for number, (name, ware) in enumerate(
        [("Arden", "glass"), ("Brill", "rope"), ("Corvo", "glass"), ("Dunmore", "salt"), ("Estray", "paper")]
    )
]


@pytest.fixture(scope="session")
def contract_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract")
    rows = [json.dumps({"_id": p.id, "title": p.title, "text": p.text}) for p in PASSAGES]
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    build_bm25(folder / "corpus.jsonl", folder / "index")
    return folder / "index"


class Overlap:
    """Judges a pair by the share of the query's words that the passage holds."""

    fingerprint = "overlap"

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        return [len(words(query) & words(text)) / (len(words(query)) or 1) for query, text in pairs]


def words(text: str) -> set[str]:
    return set(text.lower().strip(".").split())


def parts(index: Path) -> list[Retriever]:
    return [BM25Retriever(index), BM25Retriever(index, k1=2.0, b=0.0)]


COMPOSED = {"kind": "hybrid", "weights": [1, 0.5], "depth": 4}
IMPLEMENTATIONS: dict[str, Callable[[Path], Retriever]] = {
    "bm25": BM25Retriever,
    "bm25, one thread": lambda index: BM25Retriever(index, threads=1),
    "cached": lambda index: CachedRetriever(BM25Retriever(index)),
    "cached, tiny": lambda index: CachedRetriever(BM25Retriever(index), size=1),
    "resilient": lambda index: ResilientRetriever(BM25Retriever(index)),
    "opened": open_retriever,
    "hybrid, rrf": lambda index: HybridRetriever(parts(index)),
    "hybrid, sum": lambda index: HybridRetriever(parts(index), fusion="sum"),
    "hybrid, dpr": lambda index: HybridRetriever(parts(index), fusion="dpr"),
    "hybrid, opened": lambda index: open_retriever(
        RetrieverSettings.model_validate({**COMPOSED, "parts": [index, {"index": index, "k1": 1.2}]})
    ),
    "rerank": lambda index: RerankRetriever(BM25Retriever(index), Overlap()),
    "rerank of hybrid": lambda index: RerankRetriever(HybridRetriever(parts(index)), Overlap(), depth=3),
    "by dotted path": lambda index: open_retriever(
        RetrieverSettings.of(kind="retrieval.bm25:BM25Retriever", options={"index": index})
    ),
}


SERVED: dict[str, Callable[[str], Retriever]] = {
    "remote": RemoteRetriever,
    "remote, two queries a request": lambda url: RemoteRetriever(url, max_queries=2),
    "remote, opened": open_retriever,
}


@pytest.fixture(scope="session")
def address(contract_index: Path, serving: Callable[..., contextlib.AbstractContextManager[str]]) -> Iterator[str]:
    with serving(BM25Retriever(contract_index)) as url:
        yield url


DENSE: dict[str, dict[str, object]] = {
    "dense": {},
    "dense, float16": {"dtype": "float16"},
    "dense, int8": {"dtype": "int8"},
    "dense, hnsw": {"index_type": "hnsw"},
}


MULTIVECTOR: dict[str, dict[str, object]] = {
    "multivector": {},
    "multivector, residual": {"index_type": "residual", "centroids": 12, "bits": 32},
    "multivector, muvera": {"index_type": "muvera", "repetitions": 4, "k_sim": 3, "d_proj": 8},
}


@pytest.fixture(scope="session")
def contract_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network whose mean states tell words apart well enough."""
    folder = tmp_path_factory.mktemp("encoder")
    shape = {"vocabulary": 200, "hidden_size": 128, "layers": 1, "max_positions": 128, "dropout": 0.0}
    make_backbone(folder / "backbone", [f"{p.title} {p.text}" for p in PASSAGES], ScratchSettings(**shape))
    settings = preset("plain", str(folder / "backbone"), passage_max_tokens=64)
    new_encoder(settings).save(folder / "encoder")
    return folder / "encoder"


@pytest.fixture(scope="session")
def contract_colbert(contract_encoder: Path) -> Path:
    settings = preset("colbert", str(contract_encoder.parent / "backbone"), passage_max_tokens=64, expand_to=0)
    new_encoder(settings).save(contract_encoder.parent / "colbert")
    return contract_encoder.parent / "colbert"


def open_encoded_index(name: str, how: dict[str, object], index: Path, encoder: Path) -> Retriever:
    settings = {
        "kind": name.split(",")[0],
        "index": index.parent / name.replace(" ", ""),
        "corpus": index.parent / "corpus.jsonl",
        "encoder": str(encoder),
    }
    return open_retriever(RetrieverSettings.model_validate(settings | how), cached=False, resilient=False)


@pytest.fixture(scope="session", params=[*IMPLEMENTATIONS, *DENSE, *MULTIVECTOR, *SERVED])
def retriever(request: pytest.FixtureRequest, contract_index: Path) -> Retriever:
    if request.param in SERVED:
        return SERVED[request.param](request.getfixturevalue("address"))
    if request.param in DENSE:
        encoder = request.getfixturevalue("contract_encoder")
        return open_encoded_index(request.param, DENSE[request.param], contract_index, encoder)
    if request.param in MULTIVECTOR:
        encoder = request.getfixturevalue("contract_colbert")
        return open_encoded_index(request.param, MULTIVECTOR[request.param], contract_index, encoder)
    return IMPLEMENTATIONS[request.param](contract_index)


QUERIES = ["Arden", "glass river", "Dunmorewater salt", "town", "glass river", "zzz"]


def test_it_is_a_retriever(retriever: Retriever) -> None:
    assert isinstance(retriever, Retriever)
    assert retriever.fingerprint == retriever.fingerprint != ""


def test_one_list_a_query_best_first_at_most_k_ranks_from_one(retriever: Retriever) -> None:
    for k in (1, 2, 5):
        found = retriever.search(QUERIES, k)
        assert len(found) == len(QUERIES)
        for hits in found:
            assert len(hits) <= k
            assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            assert len({hit.passage.id for hit in hits}) == len(hits)
            assert all(hit.passage in PASSAGES for hit in hits)


def test_the_obvious_passage_comes_first(retriever: Retriever) -> None:
    assert retriever.search(["Arden"], 3)[0][0].passage == PASSAGES[0]
    assert retriever.search(["who makes salt"], 3)[0][0].passage == PASSAGES[3]


def test_fewer_hits_are_the_first_of_more(retriever: Retriever) -> None:
    assert [hits[:2] for hits in retriever.search(QUERIES, 5)] == retriever.search(QUERIES, 2)


def test_a_hit_does_not_depend_on_what_else_is_asked(retriever: Retriever) -> None:
    expected = [retriever.search([query], 4)[0] for query in QUERIES]
    order = list(range(len(QUERIES)))
    for seed in range(3):
        random.Random(seed).shuffle(order)
        found = retriever.search([QUERIES[i] for i in order], 4)
        for hits, alone in zip(found, [expected[i] for i in order], strict=True):
            assert [(hit.passage, hit.rank) for hit in hits] == [(hit.passage, hit.rank) for hit in alone]
            assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in alone], rel=1e-5)


def test_nothing_asked_nothing_found(retriever: Retriever) -> None:
    assert retriever.search([], 3) == []
    assert retriever.search(["", "   "], 3) == [[], []]


def test_hostile_queries_are_queries(retriever: Retriever) -> None:
    hostile = [
        "</search>",
        "<|im_start|>",
        "a AND (b",
        "\u0000",
        "\ud83d",
        "😀" * 3000,
        " ".join(map(str, range(3000))),
    ]
    assert len(retriever.search(hostile, 2)) == len(hostile)


@pytest.mark.parametrize("k", [6, 1_000, 2**31, 10**12])
def test_more_hits_than_passages_are_all_that_it_finds(retriever: Retriever, k: int) -> None:
    assert retriever.search(QUERIES, k) == retriever.search(QUERIES, len(PASSAGES))


@pytest.mark.parametrize("k", [0, -1])
def test_an_impossible_k_is_refused_by_number_and_harms_nothing(retriever: Retriever, k: int) -> None:
    for _ in range(7):  # more often than a circuit breaker bears
        with pytest.raises((ConfigError, RetrieverError), match=f"k is {k}"):
            retriever.search(["Arden"], k)
    assert retriever.search(["Arden"], 1)


def test_threads_may_share_it(retriever: Retriever) -> None:
    asked = [QUERIES[start:] + QUERIES[:start] + [f"town {start}"] for start in range(len(QUERIES))]
    expected = [retriever.search(queries, 3) for queries in asked]
    with ThreadPoolExecutor(6) as pool:
        for found in pool.map(lambda _: [retriever.search(queries, 3) for queries in asked], range(20)):
            assert found == expected
