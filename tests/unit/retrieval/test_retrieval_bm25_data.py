"""BM25 on real passages: the recall that Anserini is known to have there, and the hits of plain pyserini."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from retrieval.bm25 import BM25Retriever, build_bm25

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def hotpotqa() -> Path:
    if "SLEUTH_DATA" not in os.environ:
        pytest.skip("SLEUTH_DATA does not name the data folder")
    return Path(os.environ["SLEUTH_DATA"]) / "hotpotqa"


@pytest.fixture(scope="module")
def index(hotpotqa: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hotpotqa") / "index"
    build_bm25(hotpotqa, path)
    return path


def test_recall_of_gold_passages(hotpotqa: Path, index: Path) -> None:
    golds: dict[str, set[str]] = {}
    with (hotpotqa / "qrels" / "dev.tsv").open() as file:
        for row in csv.DictReader(file, delimiter="\t"):
            golds.setdefault(row["query-id"], set()).add(row["corpus-id"])
    rows = [json.loads(line) for line in (hotpotqa / "queries.jsonl").open()]
    queries = {row["_id"]: row["text"] for row in rows if row["_id"] in golds}
    assert len(queries) == 50
    found = BM25Retriever(index, k1=0.9, b=0.4).search(list(queries.values()), 10)
    for k, known in ((5, 0.74), (10, 0.85)):
        recall = [
            len(golds[query] & {hit.passage.id for hit in hits[:k]}) / len(golds[query])
            for query, hits in zip(queries, found, strict=True)
        ]
        assert sum(recall) / len(recall) == pytest.approx(known, abs=0.01)


def test_hits_are_those_of_plain_pyserini(hotpotqa: Path, index: Path, tmp_path: Path) -> None:
    retriever = BM25Retriever(index)
    from retrieval.jvm import import_on_jvm

    indexer = import_on_jvm("pyserini.index.lucene").LuceneIndexer(str(tmp_path / "plain"), threads=2)
    rows = [json.loads(line) for line in (hotpotqa / "corpus.jsonl").open()]
    indexer.add_batch_dict([{"id": row["_id"], "contents": f"{row['title']} {row['text']}"} for row in rows])
    indexer.close()
    plain = import_on_jvm("pyserini.search.lucene").LuceneSearcher(str(tmp_path / "plain"))
    plain.set_bm25(0.9, 0.4)
    queries = [json.loads(line)["text"] for line in (hotpotqa / "queries.jsonl").open()][:60]
    for query, hits in zip(queries, retriever.search(queries, 10), strict=True):
        expected = [(hit.docid, hit.score) for hit in plain.search(query, 10)]
        assert [(hit.passage.id, hit.score) for hit in hits] == expected
