"""BM25 (k1 0.9, b 0.4, 1,000 hits a query) beside the figures that Anserini publishes for the same collections.

    SLEUTH_DATA=... python benchmarks/published.py [--cacm-html cacm.tar.gz]

Anserini indexes CACM's HTML files as they are (src/main/resources/cacm/cacm.tar.gz of its repository), stripped of tags
by jsoup, and prints the number of terms it counted. A corpus whose terms are fewer is another text: a document with a
bare ``<`` loses what follows it to simpler strippers. ``--cacm-html`` makes the corpus as Anserini does. Judgements are
its own, with ids that lack their leading zeros. A set without the judgements of its test split is skipped and named.
"""

from __future__ import annotations

import argparse
import json
import os
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from retrieval.bm25 import BM25Retriever, build_bm25
from retrieval.evaluation.evaluate import retrieve
from retrieval.evaluation.judgements import read_qrels, read_queries
from retrieval.evaluation.measures import WHOLE_RUN, means, per_query
from retrieval.jvm import import_on_jvm, java_calls, java_class

K1, B = 0.9, 0.4


@dataclass(frozen=True, slots=True)
class Published:
    """Figures of a collection; ``terms`` is the number of terms that Anserini counts in it."""

    folder: str
    qrels: str
    figures: Mapping[str, float]
    terms: int | None = None


COLLECTIONS = (
    Published("cacm", "test_as_published", {"AP": 0.3123, "P@30": 0.1942}, 320_968),
    Published("scifact", "test", {"nDCG@10": 0.6789, "R@100": 0.9253}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SLEUTH_DATA", ".")))
    parser.add_argument("--cacm-html", type=Path, help="Anserini's cacm.tar.gz")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for collection in COLLECTIONS:
            report(collection, options.data / collection.folder, options.data / collection.folder, Path(folder))
        if options.cacm_html:
            corpus = from_html(options.cacm_html, Path(folder) / "html")
            report(COLLECTIONS[0], options.data / "cacm", corpus, Path(folder))


def report(published: Published, data: Path, corpus: Path, folder: Path) -> None:
    """Print the figures of ``published`` on the passages of ``corpus`` beside those known."""
    qrels = data / "qrels" / f"{published.qrels}.tsv"
    if not qrels.exists():
        print(f"{published.folder}: skipped, there is no {qrels}")
        return
    index = folder / f"{published.folder}-{corpus.name}"
    build_bm25(corpus, index, k1=K1, b=B)
    run = retrieve(BM25Retriever(index), read_queries(data / "queries.jsonl"), WHOLE_RUN).run
    found = means(per_query(read_qrels(qrels), run, list(published.figures)))
    print(f"{published.folder}, passages of {corpus}: {terms(index):,} terms{_of(published.terms)}")
    for name, value in published.figures.items():
        print(f"  {name:8} {found[name]:.4f}   published {value:.4f}   difference {found[name] - value:+.4f}")


def terms(index: Path) -> int:
    reader = import_on_jvm("pyserini.index.lucene").LuceneIndexReader
    with java_calls():
        return int(reader(str(index / "lucene")).stats()["total_terms"])


def from_html(archive: Path, folder: Path) -> Path:
    """The corpus in a tar archive of HTML files: jsoup's text, the name without its suffix as id."""
    folder.mkdir()
    import_on_jvm("pyserini.index.lucene")
    with tarfile.open(archive) as files, (folder / "corpus.jsonl").open("w", encoding="utf-8") as out, java_calls():
        jsoup = java_class("org.jsoup.Jsoup")
        for member in sorted((m for m in files if m.isfile()), key=lambda m: m.name):
            content = files.extractfile(member)
            assert content is not None
            text = jsoup.parse(content.read().decode("utf-8", "replace")).text()
            out.write(json.dumps({"_id": Path(member.name).stem, "text": text}) + "\n")
    return folder


def _of(known: int | None) -> str:
    return f" of {known:,} that Anserini counts" if known else ""


if __name__ == "__main__":
    main()
