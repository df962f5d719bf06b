"""Search over postings beside scipy's sparse matrix product with top-k, in one run.

    OMP_NUM_THREADS=1 python benchmarks/sparse.py INDEX --queries wiki/queries.jsonl [--passages 48297] [--rounds 7]

INDEX is made by ``sleuth index --kind sparse``. Contenders take turns within every round; medians over rounds are
printed, wall and CPU, of one thread. With ``--passages`` above the index's own, passages are drawn from it with
replacement and their weights shaken, since a search costs what its postings are, whatever they say. The rankings are
compared first: scores that differ by less than one part in a million may change places.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array

from retrieval.encoders.family import Encoded
from retrieval.encoders.retriever import EncoderRetriever
from retrieval.open import open_retriever
from retrieval.sparse.build import SparseWriter
from retrieval.sparse.postings import StoredPostings, open_postings
from retrieval.sparse.search import PostingSearch

K = 10
_PIECE = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("--queries", type=Path, required=True, help="jsonl with a field text")
    parser.add_argument("--count", type=int, default=256, help="queries of a round")
    parser.add_argument("--passages", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    retriever = open_retriever(options.index, cached=False, resilient=False)
    assert isinstance(retriever, EncoderRetriever)
    with options.queries.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, options.count)]
    queries = retriever.encoder.encode_texts(texts, "query").values.numpy()
    postings = open_postings(options.index, len(retriever))
    with tempfile.TemporaryDirectory() as folder:
        if options.passages > len(retriever):
            postings = drawn(postings, options.passages, Path(folder))
        contest(postings, queries, options.rounds)


def drawn(postings: StoredPostings, count: int, folder: Path) -> StoredPostings:
    """An index of ``count`` passages drawn from one, with weights shaken by up to a tenth."""
    random = np.random.default_rng(0)
    own = matrix(postings).T.tocsr()
    writer = SparseWriter(folder, count, postings.words)
    for start in range(0, count, _PIECE):
        rows = random.integers(0, len(postings), min(_PIECE, count - start))
        some = own[rows]
        some.data *= random.uniform(0.9, 1.1, len(some.data)).astype(np.float32)
        writer.write(start, Encoded(torch.from_numpy(some.toarray())))
    writer.finish()
    return open_postings(folder, count)


def matrix(postings: StoredPostings) -> Any:
    """The weights as scipy keeps them [words, passages], float32."""
    words = np.repeat(np.arange(postings.words), np.diff(postings.starts[0]))
    weights = postings.codes.astype(np.float32)
    if postings.scales is not None:
        weights *= postings.scales[words]
    assert len(postings.starts) == 1, "one block of passages is enough for this"
    columns = postings.rows.astype(np.int32)
    return csr_array((weights, columns, postings.starts[0].astype(np.int32)), shape=(postings.words, len(postings)))


def of_scipy(queries: Any, weights: Any) -> list[np.ndarray[Any, Any]]:
    """The best passages of each query by one matrix product."""
    product = queries @ weights
    best = []
    for begin, end in zip(product.indptr[:-1], product.indptr[1:], strict=True):
        scores, rows = product.data[begin:end], product.indices[begin:end]
        some = np.argpartition(-scores, min(K, len(scores)) - 1)[:K]
        best.append(rows[some[np.lexsort((rows[some], -scores[some]))]])
    return best


def contest(postings: StoredPostings, queries: Any, rounds: int) -> None:
    search, weights, asked = PostingSearch(postings), matrix(postings), csr_array(queries)
    touched = np.mean([np.diff(weights.indptr)[query.nonzero()[0]].sum() for query in queries])
    print(
        f"{len(postings):,} passages, {len(postings.rows) / len(postings):.0f} words a passage, "
        f"{len(asked.data) / len(queries):.0f} a query, {touched:,.0f} postings a query"
    )
    agree(search, queries, of_scipy(asked, weights), weights)
    contenders: dict[str, Callable[[], object]] = {
        "postings, batch": lambda: search.search(queries, K),
        "scipy, batch": lambda: of_scipy(asked, weights),
        "postings, one by one": lambda: [search.search(queries[i : i + 1], K) for i in range(len(queries))],
        "scipy, one by one": lambda: [of_scipy(asked[[i]], weights) for i in range(len(queries))],
    }
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            wall, own = time.perf_counter(), time.process_time()
            work()
            spent[name].append((time.perf_counter() - wall, time.process_time() - own))
    for name, times in spent.items():
        wall, own = (statistics.median(column) / len(queries) * 1e3 for column in zip(*times, strict=True))
        print(f"{name:22} {wall:8.3f} ms a query, {own:8.3f} of CPU, {1e3 / own:8.0f} queries a CPU second")


def agree(search: PostingSearch, queries: Any, theirs: list[Any], weights: Any) -> None:
    """Raise where the rankings differ by more than rounding."""
    _, rows = search.search(queries, K)
    exact = weights.astype(np.float64)
    same = 0
    for query, own, other in zip(queries, rows, theirs, strict=True):
        same += list(own) == list(other)
        mine, others = (np.asarray(query.astype(np.float64) @ exact[:, some].toarray()) for some in (own, other))
        np.testing.assert_allclose(mine, others, rtol=1e-6)
    print(f"the same ranking for {same} of {len(queries)} queries, the others but for rounding")


if __name__ == "__main__":
    main()
