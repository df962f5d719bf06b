from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from retrieval.bm25 import BM25Retriever
from retrieval.cache import CachedRetriever
from retrieval.config import RetrieverSettings, index_kind
from retrieval.ingest import OnProgress
from retrieval.open import open_retriever
from retrieval.resilient import ResilientRetriever
from sleuth.artifacts import write_manifest
from sleuth.errors import ArtifactError, ConfigError, RetrieverError
from sleuth.types import Hit


class Outside:
    """A retriever from another package, named by dotted path."""

    def __init__(self, answer: str = "x") -> None:
        self.fingerprint = answer

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        if self.fingerprint == "down":
            raise ConnectionError("connection refused")
        return [[] for _ in queries]


class NoRetriever:
    pass


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "outside", sys.modules[__name__])


def test_the_kind_of_a_bare_path_is_read_from_its_manifest(index: Path) -> None:
    for given in (index, str(index), RetrieverSettings.of(index=index)):
        retriever = open_retriever(given, cached=False, resilient=False)
        assert isinstance(retriever, BM25Retriever)
    assert index_kind(index) == "bm25"


def test_it_is_wrapped_as_asked(index: Path) -> None:
    assert isinstance(open_retriever(index), CachedRetriever)
    assert isinstance(open_retriever(index, cached=False), ResilientRetriever)
    assert isinstance(open_retriever(RetrieverSettings.of(index=index, cache=0)), ResilientRetriever)
    assert len({open_retriever(index, cached=c, resilient=r).fingerprint for c in (0, 1) for r in (0, 1)}) == 1


def test_settings_reach_the_retriever(index: Path) -> None:
    retriever = open_retriever(RetrieverSettings.of(index=index, k1=2.0, b=0.1), cached=False, resilient=False)
    assert isinstance(retriever, BM25Retriever)
    assert (retriever.k1, retriever.b) == (2.0, 0.1)


def test_a_missing_index_is_made_from_its_corpus_once(tmp_path: Path, corpus: Path) -> None:
    titles: list[str] = []
    counts: list[int] = []

    @contextmanager
    def progress(title: str) -> Iterator[OnProgress]:
        titles.append(title)
        yield counts.append

    settings = RetrieverSettings.of(index=tmp_path / "i", corpus=corpus, k1=1.2)
    first = open_retriever(settings, progress=progress)
    assert open_retriever(settings, progress=progress).fingerprint == first.fingerprint
    assert titles == [f"indexing {corpus}"]
    assert counts == [11]


def test_an_index_of_other_passages_is_refused(tmp_path: Path, corpus: Path) -> None:
    own = tmp_path / "corpus.jsonl"
    own.write_text(corpus.read_text())
    settings = RetrieverSettings.of(index=tmp_path / "i", corpus=own)
    open_retriever(settings)
    own.write_text(corpus.read_text().replace("Arden", "Ardem"))
    os.utime(own, (1, 1))
    with pytest.raises(ArtifactError, match=rf"sleuth index {own} --out {tmp_path / 'i'} --kind bm25 --overwrite"):
        open_retriever(settings)


def test_a_class_by_dotted_path() -> None:
    settings = RetrieverSettings.of(kind="outside:Outside", options={"answer": "y"})
    retriever = open_retriever(settings)
    assert retriever.fingerprint == "y"
    assert retriever.search(["a", "b"], 3) == [[], []]


def test_a_retriever_that_cannot_be_reached_is_one_clear_line() -> None:
    settings = RetrieverSettings.of(kind="outside:Outside", options={"answer": "down"}, retries=1, backoff_s=0)
    with pytest.raises(RetrieverError, match=r"failed \(2 attempts\): ConnectionError: connection refused"):
        open_retriever(settings).search(["a"], 1)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("outside:Absent", {}, "has no 'Absent'"),
        ("no_such_package_here:Class", {}, "cannot import"),
        ("outside:Outside", {"colour": 1}, "does not take these options: .*colour"),
        ("outside:NoRetriever", {}, "is no Retriever"),
        ("./my.py:Class", {}, "'./my.py:Class' is not a dotted path"),
        (".outside:Outside", {}, "is not a dotted path"),
    ],
)
def test_a_class_that_does_not_fit_is_one_clear_line(kind: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_retriever(RetrieverSettings.of(kind=kind, options=options))


def test_what_is_no_index_says_so(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no index at .*nope \(make it with: sleuth index CORPUS --out"):
        open_retriever(tmp_path / "nope")
    with pytest.raises(ArtifactError, match="is a file, not an index"):
        open_retriever(corpus)
    with pytest.raises(ArtifactError, match="not a finished index"):
        open_retriever(corpus.parent)
    for name, kind in (("a", "bm52"), ("b", "checkpoint")):
        (tmp_path / name).mkdir()
        write_manifest(tmp_path / name, kind, {})
        with pytest.raises(ArtifactError, match=f"is of kind '{kind}', which is no index"):
            open_retriever(tmp_path / name)
    for text in ("{", "[]", json.dumps({"kind": ["x"]})):
        (tmp_path / "a" / "manifest.json").write_text(text)
        with pytest.raises(ArtifactError):
            open_retriever(tmp_path / "a")
