"""BEIR and BRIGHT from local copies in the layouts of their archives and of the hub, and by name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from retrieval.corpus import PassageRow, read_rows
from retrieval.evaluation.benchmarks import beir_set, bright_sets
from retrieval.evaluation.evaluate import retrieve
from retrieval.evaluation.sets import RetrievalSet, without_left_out
from sleuth.errors import DataError
from sleuth.types import Hit, Passage, Question

CORPUS = [{"_id": str(i), "title": f"T{i}", "text": f"text {i}"} for i in range(4)]
QUERIES = [{"_id": "q0", "text": "first"}, {"_id": "1", "text": "second"}]
QRELS = [
    {"query-id": "q0", "corpus-id": "0", "score": 1},
    {"query-id": "1", "corpus-id": "2", "score": 2},
    {"query-id": "1", "corpus-id": "3", "score": 0},
]
EXPECTED = {"q0": {"0": 1}, "1": {"2": 2, "3": 0}}
EXAMPLES = [
    {"id": "0", "query": "why", "excluded_ids": ["N/A"], "gold_ids": ["a/0", "a/1"], "gold_ids_long": ["a"]},
    {"id": "1", "query": "how", "excluded_ids": ["b/0"], "gold_ids": ["b/1"], "gold_ids_long": ["N/A"]},
]
DOCUMENTS = [{"id": f"{name}/{i}", "content": f"{name} {i}"} for name in "ab" for i in range(2)]


def jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def tsv(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(map(str, row.values())) for row in QRELS]
    path.write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")


def archive(folder: Path) -> None:
    """What BEIR's zip holds."""
    jsonl(folder / "corpus.jsonl", CORPUS)
    jsonl(folder / "queries.jsonl", QUERIES)
    tsv(folder / "qrels" / "test.tsv")


def beir_of_hub(folder: Path) -> None:
    """BeIR/NAME and BeIR/NAME-qrels."""
    for name, rows in (("corpus", CORPUS), ("queries", QUERIES)):
        half = len(rows) // 2
        parquet(folder / name / f"{name}-00000-of-00002.parquet", rows[:half])
        parquet(folder / name / f"{name}-00001-of-00002.parquet", rows[half:])
    (folder / "README.md").write_text(configs({"corpus": "corpus", "queries": "queries"}))
    tsv(folder.parent / f"{folder.name}-qrels" / "test.tsv")


def mteb_of_hub(folder: Path) -> None:
    parquet(folder / "corpus" / "corpus-00000-of-00001.parquet", CORPUS)
    parquet(folder / "queries" / "queries-00000-of-00001.parquet", QUERIES)
    parquet(
        folder / "default" / "test-00000-of-00001.parquet", [{**row, "score": float(row["score"])} for row in QRELS]
    )
    (folder / "README.md").write_text(configs({"corpus": "corpus", "queries": "queries", "default": "test"}))


def bright_of_hub(folder: Path) -> None:
    parquet(folder / "examples" / "biology-00000-of-00001.parquet", EXAMPLES)
    parquet(folder / "examples" / "leetcode-00000-of-00001.parquet", [{**EXAMPLES[0], "gold_ids_long": ["N/A"]}])
    for domain in ("biology", "leetcode"):
        parquet(folder / "documents" / f"{domain}-00000-of-00002.parquet", DOCUMENTS[:1])
        parquet(folder / "documents" / f"{domain}-00001-of-00002.parquet", DOCUMENTS[1:])
    parquet(folder / "long_documents" / "biology-00000-of-00001.parquet", [{"id": "a", "content": "whole a"}])
    names = {"examples": "biology", "documents": "biology", "long_documents": "biology"}
    (folder / "README.md").write_text(configs(names))


def configs(splits: dict[str, str]) -> str:
    """The card of a dataset on the hub, which names the files of each config."""
    lines = [
        f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {name}/{split}-*"
        for name, split in splits.items()
    ]
    return "---\nconfigs:\n" + "\n".join(lines) + "\n---\n"


def ids(corpus: str | None) -> list[str]:
    assert corpus
    return [row.passage.id for row in read_rows(corpus) if isinstance(row, PassageRow)]


@pytest.mark.parametrize("layout", [archive, beir_of_hub, mteb_of_hub])
def test_a_folder_of_beir_in_every_layout(tmp_path: Path, layout: Any) -> None:
    layout(tmp_path / "made-up")
    found = beir_set(str(tmp_path / "made-up"))
    assert (found.name, found.split, found.not_itself) == ("made-up", "test", True)
    assert found.qrels == EXPECTED
    assert [query.text for query in found.asked] == ["first", "second"]
    assert ids(found.corpus) == ["0", "1", "2", "3"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the hub: what ``datasets`` is asked to load lies in it, under its name."""
    import datasets

    real = datasets.load_dataset
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.load_dataset", lambda name, *rest, **how: real(str(tmp_path / name), *rest, **how))
    return tmp_path


@pytest.mark.parametrize(
    ("given", "repository", "layout"),
    [("scifact", "BeIR/scifact", beir_of_hub), ("mteb/forum", "mteb/forum", mteb_of_hub)],
)
def test_a_name_of_beir_is_loaded_from_the_hub(hub: Path, given: str, repository: str, layout: Any) -> None:
    layout(hub / repository)
    found = beir_set(given)
    assert found.name == given.rpartition("/")[2]
    assert found.qrels == EXPECTED
    assert ids(found.corpus) == ["0", "1", "2", "3"]


def test_the_split_is_test_unless_said(tmp_path: Path) -> None:
    archive(tmp_path / "made-up")
    tsv(tmp_path / "made-up" / "qrels" / "dev.tsv")
    assert beir_set(str(tmp_path / "made-up"), "dev").split == "dev"
    (tmp_path / "made-up").rename(tmp_path / "msmarco")
    assert beir_set(str(tmp_path / "msmarco")).split == "dev"
    with pytest.raises(DataError, match=r"no file .*train\.tsv"):
        beir_set(str(tmp_path / "msmarco"), "train")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("scifct", "did you mean 'scifact'"),
        ("no/such/folder", "there is no folder 'no/such/folder'"),
        ("./scifact", "there is no folder './scifact'"),
        ("/absent/scifact", "there is no folder '/absent/scifact'"),
    ],
)
def test_what_is_no_set_is_one_clear_line(given: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        beir_set(given)
    assert message in str(caught.value)


def test_bright_in_the_layout_of_the_hub(tmp_path: Path) -> None:
    bright_of_hub(tmp_path / "BRIGHT")
    biology, leetcode = bright_sets(str(tmp_path / "BRIGHT"))
    assert (biology.name, leetcode.name) == ("bright-biology", "bright-leetcode")
    assert biology.qrels == {"0": {"a/0": 1, "a/1": 1}, "1": {"b/1": 1}}
    assert [biology.left_out(query) for query in ("0", "1")] == [frozenset(), {"b/0"}]
    assert ids(biology.corpus) == ["a/0", "a/1", "b/0", "b/1"]
    assert bright_sets(str(tmp_path / "BRIGHT" / "leetcode")) == [leetcode]
    (long,) = bright_sets(str(tmp_path / "BRIGHT"), long=True)
    assert (long.name, long.qrels, ids(long.corpus)) == ("bright-biology-long", {"0": {"a": 1}}, ["a"])
    with pytest.raises(DataError, match="BRIGHT's leetcode has no long documents"):
        bright_sets(str(tmp_path / "BRIGHT" / "leetcode"), long=True)
    with pytest.raises(DataError, match="did you mean 'biology'"):
        bright_sets(str(tmp_path / "BRIGHT" / "biologie"))


def test_a_domain_of_bright_is_loaded_from_the_hub(hub: Path) -> None:
    bright_of_hub(hub / "xlangai" / "BRIGHT")
    (found,) = bright_sets("biology")
    assert found.qrels == {"0": {"a/0": 1, "a/1": 1}, "1": {"b/1": 1}}
    assert ids(found.corpus) == ["a/0", "a/1", "b/0", "b/1"]
    with pytest.raises(DataError, match="did you mean 'biology'"):
        bright_sets("biologie")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"gold_ids": "a/0"}, "'gold_ids' is not a list"), ({"id": "1"}, "is there already"), ({"query": ""}, "'query'")],
)
def test_broken_examples_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    jsonl(tmp_path / "examples" / "pony.jsonl", [{**EXAMPLES[0], **change}, EXAMPLES[1]])
    jsonl(tmp_path / "documents" / "pony.jsonl", DOCUMENTS)
    with pytest.raises(DataError, match=rf"pony\.jsonl, line \d: .*{message}"):
        bright_sets(str(tmp_path))


class Ordered:
    """Finds passages 0, 1, 2, ... whatever is asked, and notes how many were asked for."""

    fingerprint = "ordered"

    def __init__(self) -> None:
        self.asked: list[int] = []

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.asked.append(k)
        return [[Hit(Passage(str(i), "", "x"), -float(i), i + 1) for i in range(k)] for _ in queries]


def test_passages_that_do_not_count_are_replaced_by_the_next() -> None:
    retriever = Ordered()
    chosen = RetrievalSet(
        "s",
        {name: Question(name, "?", ()) for name in ("1", "7", "q")},
        {"1": {"0": 1}, "7": {"0": 1}, "q": {"0": 1}},
        excluded={"q": frozenset({"0", "2", "99"})},
        not_itself=True,
    )
    run = retrieve(retriever, chosen.asked, 3, left_out=chosen.left_out).run
    assert {query: list(scores) for query, scores in run.items()} == {
        "1": ["0", "2", "3"],
        "7": ["0", "1", "2"],
        "q": ["1", "3", "4"],
    }
    assert retriever.asked == [3 + 4]
    assert without_left_out({"q": {"0": 1.0, "1": 0.5}, "1": {"1": 1.0}}, chosen) == {"q": {"1": 0.5}, "1": {}}


class Tied(Ordered):
    """Ten passages, of which 2 to 5 have one score."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        scores = [9.0, 8.0, 7.0, 7.0, 7.0, 7.0, 3.0, 2.0, 1.0, 0.5]
        return [[Hit(Passage(str(i), "", "salt"), s, i + 1) for i, s in enumerate(scores[:k])] for _ in queries]


@pytest.mark.parametrize(("judged", "texts"), [(None, 10), (0, 0), (1, 1), (3, 6), (7, 7), (50, 10)])
def test_answers_are_looked_for_as_deep_as_they_count(judged: int | None, texts: int) -> None:
    found = retrieve(Tied(), [Question("q", "?", ("salt",))], 10, judged=judged)
    assert len(found.answers["q"]) == texts
