from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import pytest
import yaml

from retrieval import bm25 as bm25_module
from retrieval.bm25 import BM25Retriever, build_bm25
from retrieval.bm25_config import BM25Settings
from retrieval.jvm import import_on_jvm, java_calls, java_class
from retrieval.languages import Language
from retrieval.open import open_retriever
from retrieval.windows_config import WindowSettings
from sleuth.artifacts import MANIFEST
from sleuth.errors import ArtifactError, ConfigError, DataError
from sleuth.types import Passage


@pytest.fixture(scope="module")
def retriever(index: Path) -> BM25Retriever:
    return BM25Retriever(index)


def ids(retriever: BM25Retriever, query: str, k: int = 5) -> list[str]:
    return [hit.passage.id for hit in retriever.search([query], k)[0]]


def test_passages_come_back_as_they_were_written(retriever: BM25Retriever, passages: list[Passage]) -> None:
    assert {p.id for p in retriever.store} == {p.id for p in passages}
    for passage in (passages[2], passages[-1], passages[-2]):
        assert retriever.search([f"{passage.title} onetoken"], 5)[0][0].passage == passage


def test_scores_are_bm25(tmp_path: Path) -> None:
    """Against the formula as Robertson and Zaragoza (2009) give it, with Lucene's idf and without its (k1 + 1)."""
    texts = ["apple pear", "apple apple plum cherry", "cherry", "fig fig fig fig pear"]
    corpus = tmp_path / "c.jsonl"
    corpus.write_text("".join(json.dumps({"_id": str(i), "text": t}) + "\n" for i, t in enumerate(texts)))
    build_bm25(corpus, tmp_path / "index")
    k1, b = 1.5, 0.6
    found = BM25Retriever(tmp_path / "index", k1=k1, b=b).search(["apple pear"], 4)[0]
    bags = [Counter(text.split()) for text in texts]
    mean = sum(bag.total() for bag in bags) / len(bags)
    expected = {}
    for number, bag in enumerate(bags):
        score = 0.0
        for term in ("apple", "pear"):
            df = sum(term in other for other in bags)
            idf = math.log(1 + (len(bags) - df + 0.5) / (df + 0.5))
            score += idf * bag[term] / (bag[term] + k1 * (1 - b + b * bag.total() / mean))
        if score:
            expected[str(number)] = score
    assert [hit.passage.id for hit in found] == sorted(expected, key=lambda n: -expected[n])
    for hit in found:
        assert hit.score == pytest.approx(expected[hit.passage.id], abs=2e-4)  # Anserini rounds to four places


def test_paths_are_relative_to_the_working_directory_of_today(
    retriever: BM25Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Java resolves them by the directory that it was started in; ``retriever`` has started it elsewhere."""
    monkeypatch.chdir(tmp_path)
    Path("c.jsonl").write_text(json.dumps({"_id": "a", "text": "apple pear"}) + "\n")
    build_bm25(Path("c.jsonl"), Path("index"))
    assert ids(BM25Retriever(Path("index")), "apple", 1) == ["a"]


def test_equal_scores_are_ordered_by_id(retriever: BM25Retriever) -> None:
    for _ in range(3):
        assert ids(retriever, "halls tell apart") == ["t1", "t2", "t3"]
        assert ids(retriever, "halls tell apart", 2) == ["t1", "t2"]


def test_a_batch_equals_its_queries_one_by_one_on_any_number_of_threads(index: Path, retriever: BM25Retriever) -> None:
    queries = [
        "town river",
        "Brill",
        "",
        "halls",
        "town river",
        "東京 😀",
        "nothing-of-the-kind",
        "Estraywater town",
    ] * 5
    batch = retriever.search(queries, 4)
    assert batch == [retriever.search([query], 4)[0] for query in queries]
    assert batch == BM25Retriever(index, threads=1).search(queries, 4)


@pytest.mark.parametrize("query", ["", "   ", "\n", "the of and", "?!", "\u0000"])
def test_a_query_without_a_word_finds_nothing(retriever: BM25Retriever, query: str) -> None:
    assert retriever.search([query, "town"], 3)[0] == []
    assert retriever.search([query], 3) == [[]]


@pytest.mark.parametrize(
    "query",
    [
        "town AND (OR",
        'title:"Arden" ^^ ~2 [a TO',
        "/re.*/ \\ {!x} +town -river *",
        "</information><answer>x</answer> <|im_start|>",
        "half \ud83d a pair of Arden",
        "東京 😀 éclairs \u202e \u0000 x",
    ],
)
def test_no_query_is_syntax(retriever: BM25Retriever, query: str) -> None:
    assert len(retriever.search([query], 3)) == len(retriever.search([query, query], 3)) - 1 == 1


def test_queries_of_thousands_of_words_are_searched(retriever: BM25Retriever) -> None:
    long = " ".join(f"word{i}" for i in range(5_000)) + " Dunmorewater"
    assert ids(retriever, long)[0] == "c3"
    assert ids(retriever, "y" * 1_000_000 + " Dunmorewater")[0] == "c3"


def test_more_hits_than_passages_are_all_that_there_are(retriever: BM25Retriever) -> None:
    every = retriever.search(["town"], len(retriever))
    assert retriever.search(["town"], 2**31) == every
    assert retriever.search(["town", "halls"], len(retriever) + 1)[0] == every[0]
    for k in (0, -3):
        with pytest.raises(ConfigError, match=f"k is {k}, it must be 1 or more"):
            retriever.search(["town"], k)
    assert retriever.search([], 1) == []


def test_many_python_threads_share_it(retriever: BM25Retriever) -> None:
    queries = ["Arden town", "halls", "Corvo", "river"] * 8
    expected = [retriever.search([query], 3) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda query: retriever.search([query], 3), queries)) == expected


def test_threads_that_end_leave_nothing_in_the_java_machine(retriever: BM25Retriever) -> None:
    from retrieval.jvm import java_class

    count = java_class("java.lang.Thread").getAllStackTraces
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: retriever.search(["town", "river"], 1), range(4)))
    before = count().size()
    for _ in range(20):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(retriever.search, ["town"], 1).result()
    assert count().size() < before + 10


def test_k1_and_b_are_the_manifests_unless_given_and_change_the_fingerprint(tmp_path: Path, corpus: Path) -> None:
    build_bm25(corpus, tmp_path / "i", k1=1.2, b=0.75)
    stored, same, other = (BM25Retriever(tmp_path / "i", **kw) for kw in ({}, {"k1": 1.2}, {"b": 0.4}))  # type: ignore[arg-type]
    assert (stored.k1, stored.b) == (1.2, 0.75)
    assert stored.fingerprint == same.fingerprint != other.fingerprint
    assert stored.search(["town river Arden"], 3) != other.search(["town river Arden"], 3)


@pytest.mark.parametrize(
    ("k1", "b", "threads"), [(-1, 0.4, 1), (math.nan, 0.4, 1), (0.9, 1.1, 1), (0.9, -0.1, 1), (1, 0, 0)]
)
def test_senseless_parameters_are_refused(corpus: Path, tmp_path: Path, k1: float, b: float, threads: int) -> None:
    with pytest.raises(ConfigError):
        build_bm25(corpus, tmp_path / "i", k1=k1, b=b, threads=threads)
    assert not list(tmp_path.iterdir())


def test_the_index_is_the_same_from_any_layout(tmp_path: Path, index: Path, passages: list[Passage]) -> None:
    other = tmp_path / "r1.jsonl"
    rows = [{"id": p.id, "contents": f'"{p.title}"\n{p.text}'} for p in passages]
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_bm25(other, tmp_path / "i")
    assert BM25Retriever(tmp_path / "i").fingerprint == BM25Retriever(index).fingerprint


def test_writing_out_in_parts_changes_no_hit(
    tmp_path: Path, corpus: Path, retriever: BM25Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bm25_module, "_FLUSH_CHARACTERS", 50)
    monkeypatch.setattr("retrieval.ingest.BATCH", 1)
    build_bm25(corpus, tmp_path / "i")
    queries = ["town river", "halls", "Corvo"]
    assert BM25Retriever(tmp_path / "i").search(queries, 5) == retriever.search(queries, 5)


def test_a_bad_row_or_an_interrupt_leaves_nothing_behind(tmp_path: Path, corpus: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(corpus.read_text() + '{"_id": "x", "title": "no text"}\n')

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out" / "index"
    with pytest.raises(DataError, match=r"bad\.jsonl:12: no text"):
        build_bm25(bad, out)
    with pytest.raises(KeyboardInterrupt):
        build_bm25(corpus, out, on_progress=interrupt)
    assert not list(out.parent.iterdir())
    built = build_bm25(bad, out, skip_bad_rows=True)
    assert (built.passages, dict(built.skipped)) == (11, {"no text": 1})
    assert json.loads((out / MANIFEST).read_text())["skipped"] == {"no text": 1}


def test_an_index_is_replaced_only_when_told_and_kept_when_the_new_one_fails(tmp_path: Path, corpus: Path) -> None:
    build_bm25(corpus, tmp_path / "i")
    before = (tmp_path / "i" / MANIFEST).read_text()
    with pytest.raises(ArtifactError, match="--overwrite"):
        build_bm25(corpus, tmp_path / "i")
    with pytest.raises(DataError):
        build_bm25(tmp_path / "absent.jsonl", tmp_path / "i", overwrite=True)
    assert (tmp_path / "i" / MANIFEST).read_text() == before
    build_bm25(corpus, tmp_path / "i", overwrite=True)


def test_a_damaged_index_says_what_makes_it_anew(tmp_path: Path, index: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(index, tmp_path / name))

    lucene = copy("a")
    shutil.rmtree(lucene / "lucene")
    emptied = copy("b")
    for file in (emptied / "lucene").iterdir():
        file.write_bytes(b"")
    newer = copy("c")
    manifest = json.loads((newer / MANIFEST).read_text())
    (newer / MANIFEST).write_text(json.dumps({**manifest, "format": 99}))
    short = copy("d")
    (short / MANIFEST).write_text(json.dumps({**manifest, "passages": 3}))
    made_of = manifest["corpus"]["path"]
    for path, corpus in ((lucene, made_of), (emptied, made_of), (newer, "CORPUS"), (short, made_of)):
        with pytest.raises(ArtifactError, match=f"sleuth index {corpus} --out {path} --kind bm25 --overwrite"):
            BM25Retriever(path)


def test_words_are_told_apart_and_stemmed_as_the_language_does(tmp_path: Path) -> None:
    towns = {"a": "Die Häuser der Stadt", "b": "华沙的第一家文艺歌厅", "c": "The houses of the town"}
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"_id": name, "title": "", "text": text}) + "\n" for name, text in towns.items())
    )

    def first(language: Language | None, query: str) -> list[str]:
        index = tmp_path / str(language)
        settings = BM25Settings(index=index, corpus=corpus, language=language)
        return [hit.passage.id for hit in open_retriever(settings).search([query], 3)[0]]

    assert first("de", "Haus") == ["a"] and first("zh", "歌厅") == ["b"]
    assert first(None, "house") == ["c"] and first(None, "Haus") == []
    assert first(None, "ein Haus der Stadt") != []  # "der" is an English index's word
    german = open_retriever(BM25Settings(index=tmp_path / "de"))
    assert german.fingerprint != open_retriever(BM25Settings(index=tmp_path / "None")).fingerprint
    with pytest.raises(ConfigError, match="is of the language de, not fr"):
        open_retriever(BM25Settings(index=tmp_path / "de", language="fr"))
    with pytest.raises(ConfigError, match="no analyser for the language 'el'"):
        build_bm25(corpus, tmp_path / "el", language="el")


def test_the_languages_are_those_of_anserini() -> None:
    import_on_jvm("pyserini.index.lucene")
    with java_calls():
        known = java_class("io.anserini.analysis.AnalyzerMap").analyzerMap.keySet().toArray()
    assert {*known, "en"} - {"th"} == set(get_args(Language))


def test_each_language_has_what_its_analyser_needs(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"_id": "p1", "title": "", "text": "42 Paris"}\n')
    for language in get_args(Language):
        build_bm25(corpus, tmp_path / language, language=language)
        assert [hit.passage.id for hit in BM25Retriever(tmp_path / language).search(["42"], 1)[0]] == ["p1"], language


def test_a_command_that_rebuilds_an_index_names_its_corpus_its_windows_and_its_language(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"_id": "p1", "title": "", "text": "eine Stadt am Fluss " * 9}) + "\n")
    index, windows = tmp_path / "de", WindowSettings(words=8, stride=6)
    build_bm25(corpus, index, language="de", window=windows)
    again = f"sleuth index {corpus} --window 8 --stride 6 --out {index} --kind bm25 --language"
    with pytest.raises(ConfigError) as refused:
        open_retriever(BM25Settings(index=index, language="fr"))
    assert f"{again} fr --overwrite" in str(refused.value.hint)
    for part in (index / "lucene").glob("segments*"):
        part.unlink()
    with pytest.raises(ArtifactError) as damaged:
        open_retriever(BM25Settings(index=index))
    assert f"{again} de --overwrite" in str(damaged.value.hint)


def test_norwegian_may_be_written_as_yaml_reads_it() -> None:
    assert BM25Settings.model_validate(yaml.safe_load("{index: there, language: no}")).language == "no"
