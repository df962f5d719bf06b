"""Rows of every layout, bad rows, sampling and mining."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from retrieval.passages import content_key
from retrieval.training.config import SourceSettings
from retrieval.training.loss import Columns
from retrieval.training.mining import mine
from retrieval.training.mining_config import FilterSettings
from retrieval.training.row import TrainingRow, passages_of
from retrieval.training.rows import load_rows, write_rows
from retrieval.training.sampling import BatchSampler, one_key
from sleuth.errors import ConfigError, DataError
from sleuth.types import Hit, Passage

TEVATRON = {
    "query_id": 7,
    "query": "who?",
    "positive_passages": [{"docid": "p", "title": "T", "text": "yes it is"}],
    "negative_passages": [{"docid": "n", "title": "", "text": "no"}],
}
HOTPOT = {
    "_id": "h1",
    "question": "who?",
    "answer": "Ann",
    "supporting_facts": [["A", 0], ["B", 1]],
    "context": [["A", ["Ann ", "is."]], ["B", ["b"]], ["C", ["c"]]],
}
MUSIQUE = {
    "id": "m1",
    "question": "who?",
    "answer": "Ann",
    "answer_aliases": ["Anna"],
    "answerable": True,
    "paragraphs": [
        {"title": "A", "paragraph_text": "a", "is_supporting": True},
        {"title": "C", "paragraph_text": "c", "is_supporting": False},
    ],
}


def written(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(path: str, **options: Any) -> list[TrainingRow]:
    return load_rows([SourceSettings(path=path, **options)])


def test_tevatron_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = load(written(tmp_path / "t.jsonl", [TEVATRON]))
    assert rows == [TrainingRow("7", "who?", (Passage("p", "T", "yes it is"),), (Passage("n", "", "no"),))]
    write_rows(rows, tmp_path / "again.jsonl")
    assert load(str(tmp_path / "again.jsonl")) == rows


def test_hotpotqa_distractors_are_negatives(tmp_path: Path) -> None:
    (tmp_path / "h.json").write_text(json.dumps([HOTPOT]), encoding="utf-8")
    (row,) = load(str(tmp_path / "h.json"))
    assert ([p.title for p in row.positives], [p.title for p in row.negatives]) == (["A", "B"], ["C"])
    assert row.positives[0].text == "Ann is."
    assert row.answers == ("Ann",)


def test_a_blank_paragraph_is_no_passage(tmp_path: Path) -> None:
    blank = {"title": "B", "paragraph_text": " ", "is_supporting": False}
    rows = load(written(tmp_path / "m.jsonl", [MUSIQUE | {"paragraphs": [*MUSIQUE["paragraphs"], blank]}]))
    assert [p.title for p in rows[0].negatives] == ["C"]


def test_musique_and_unanswerable_rows(tmp_path: Path) -> None:
    rows = load(written(tmp_path / "m.jsonl", [MUSIQUE, MUSIQUE | {"answerable": False}]))
    assert len(rows) == 1
    assert [p.title for p in rows[0].positives] == ["A"]
    assert rows[0].answers == ("Ann", "Anna")


def test_releases_take_the_ids_of_a_corpus(tmp_path: Path) -> None:
    corpus = written(tmp_path / "corpus.jsonl", [{"_id": "x", "title": "A", "text": "Ann is."}])
    (row,) = load(written(tmp_path / "h.jsonl", [HOTPOT]), corpus=corpus)
    assert row.positives[0].id == "x"
    assert row.positives[1].id != "x"


def beir(folder: Path, qrels: str = "query-id\tcorpus-id\tscore\nq\ta\t1\nq\tb\t0\n") -> str:
    (folder / "qrels").mkdir()
    written(folder / "corpus.jsonl", [{"_id": i, "title": i, "text": i * 2} for i in "ab"])
    written(folder / "queries.jsonl", [{"_id": "q", "text": "who?"}])
    (folder / "qrels" / "train.tsv").write_text(qrels, encoding="utf-8")
    return str(folder)


def test_a_beir_folder(tmp_path: Path) -> None:
    (row,) = load(beir(tmp_path))
    assert row == TrainingRow("q", "who?", (Passage("a", "a", "aa"),), (Passage("b", "b", "bb"),))


@pytest.mark.parametrize(
    ("qrels", "named"),
    [
        ("query-id\tcorpus-id\tscore\nq\ta\n", "line 2"),
        ("q\ta\tmany\n", "line 1"),
        ("", "judges no passage"),
        ("q\tzzz\t1\n", "zzz"),
        ("other\ta\t1\n", "other"),
    ],
)
def test_bad_judgements_are_named(tmp_path: Path, qrels: str, named: str) -> None:
    with pytest.raises(DataError, match=named):
        load(beir(tmp_path, qrels))


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"query": "q", "positive_passages": []}, "line 2.*positive_passages.*empty"),
        ({"positive_passages": [{"docid": "a", "text": "t"}]}, "line 2.*query"),
        ({"query": "q", "positive_passages": "a"}, "line 2.*not a list"),
        ({"query": "q", "positive_passages": [{"docid": "a"}]}, r"line 2.*positive_passages\[0\]"),
        ({"query": " ", "positive_passages": [{"docid": "a", "text": "t"}]}, "line 2.*blank"),
    ],
)
def test_bad_tevatron_rows_are_named(tmp_path: Path, row: dict[str, Any], named: str) -> None:
    with pytest.raises(DataError, match=named):
        load(written(tmp_path / "t.jsonl", [TEVATRON, row]))


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (HOTPOT | {"supporting_facts": [["nowhere", 0]]}, "line 1.*no paragraph is marked"),
        (HOTPOT | {"context": [["A"]]}, r"line 1.*context\[0\]"),
        (MUSIQUE | {"paragraphs": [{"title": "A"}]}, r"line 1.*paragraphs\[0\]"),
        ({"text": "only"}, "line 1.*no known layout"),
    ],
)
def test_bad_released_rows_are_named(tmp_path: Path, row: dict[str, Any], named: str) -> None:
    with pytest.raises(DataError, match=named):
        load(written(tmp_path / "r.jsonl", [row]))


def test_judgements_of_a_passage_hold_for_the_pages_that_it_became(tmp_path: Path) -> None:
    folder = beir(tmp_path)
    rows = [{"_id": name, "text": f"page {name}"} for name in ("a::w0", "b", "a::w1", "c::w0")]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (row,) = load(folder)
    assert [p.id for p in row.positives] == ["a::w0", "a::w1"] and [p.id for p in row.negatives] == ["b"]


def test_a_folder_is_beir_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder"):
        load(str(tmp_path), layout="tevatron")
    (tmp_path / "rows.jsonl").write_text('{"query": "\\ud800", "positive_passages": [{"text": "b"}]}\n')
    with pytest.raises(DataError, match=r"rows.jsonl, line 1.* half a surrogate pair"):
        load(str(tmp_path / "rows.jsonl"))
    with pytest.raises(ConfigError, match=r"rows.jsonl is a file, and the layout beir is a folder"):
        load(str(tmp_path / "rows.jsonl"), layout="beir")
    with pytest.raises(DataError, match="no file"):
        load(str(tmp_path / "nothing.jsonl"))


def passage(name: str, text: str | None = None) -> Passage:
    return Passage(name, name.upper(), text or f"text of {name}")


def sample_rows(count: int = 10) -> list[TrainingRow]:
    return [
        TrainingRow(
            f"q{i}", f"query {i}", (passage(f"p{i}"), passage(f"o{i}")), tuple(map(passage, f"n{i} m{i}".split()))
        )
        for i in range(count)
    ]


def test_every_row_is_met_once_an_epoch_and_none_is_left_out() -> None:
    sampler = BatchSampler(sample_rows(10), 4, 1, seed=3)
    assert sampler.steps(2) == 5
    seen = [row.id for step in range(5) for _, row in sampler.rows(step)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == sorted(f"q{i}" for i in range(10))
    assert seen[:10] != seen[10:]


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    one, two = (BatchSampler(sample_rows(), 4, 1, seed=3) for _ in range(2))
    two.batch(0)
    assert one.batch(7).passages == two.batch(7).passages
    assert one.batch(7).passages != BatchSampler(sample_rows(), 4, 1, seed=4).batch(7).passages


def test_other_golds_copies_and_equal_texts_are_masked() -> None:
    gold, other = passage("a"), passage("b")
    same_text, same_id = Passage("zz", gold.title, gold.text), Passage("b", "other title", "other text")
    rows = [
        TrainingRow("1", "one", (gold, other)),
        TrainingRow("2", "two", (passage("c"),), (same_text,)),
        TrainingRow("3", "three", (passage("d"),), (same_id,)),
    ]
    batch = BatchSampler(rows, 3, 1, seed=0).batch(0)
    first = batch.queries.index("one")
    masked = {batch.passages[j].id for j in batch.targets.masked[first].nonzero().flatten().tolist()}
    assert masked == {"zz", "b"}
    others = [i for i in range(3) if i != first]
    assert not batch.targets.masked[others].any()
    assert [batch.passages[j] for j in batch.targets.positive.tolist()] == batch.passages[:3]


def test_golds_of_rows_with_one_query_belong_to_both() -> None:
    rows = [TrainingRow("1", "same", (passage("a"),)), TrainingRow("2", "same", (passage("b"),))]
    batch = BatchSampler(rows, 2, 0, seed=0).batch(0)
    assert batch.targets.masked.tolist() == [[False, True], [True, False]]


class Listed:
    """A retriever that returns what it was given, scored 10, 9, 8 ..."""

    fingerprint = "listed"

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [[Hit(p, 10.0 - i, i + 1) for i, p in enumerate(self._passages[:k])] for _ in queries]


HITS = [passage("x1"), passage("gold"), passage("x2", "Ann lives here"), passage("x3"), passage("x4"), passage("x5")]
ROW = TrainingRow("q", "who?", (passage("gold"),), (passage("given"),), ("Ann", "yes"))


def mined_ids(**options: Any) -> list[str]:
    rows, _ = mine([ROW], Listed(HITS), FilterSettings(**options))
    return [p.id for p in rows[0].negatives]


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({"negatives": 2}, ["x1", "x2", "given"]),
        ({"first_rank": 3, "last_rank": 4}, ["x2", "x3", "given"]),
        ({"drop_answers": True}, ["x1", "x3", "x4", "x5", "given"]),
        ({"margin": 1.5}, ["x3", "x4", "x5", "given"]),
        ({"relative_margin": 0.25}, ["x4", "x5", "given"]),
        ({"margin": 100}, ["given"]),
    ],
)
def test_filters_of_mining(options: dict[str, Any], ids: list[str]) -> None:
    assert mined_ids(**options) == ids


@pytest.mark.parametrize("options", [{"margin": 0.5}, {"relative_margin": 0.1}, {"margin": 0.0, "last_rank": 2}])
def test_a_margin_to_golds_that_were_not_found_lets_nothing_through(options: dict[str, Any]) -> None:
    """They score below every hit, so no hit is below them."""
    found = [passage(f"x{i}") for i in range(4)]
    rows, report = mine([ROW, ROW], Listed(found), FilterSettings(**options), keep_given=False)
    assert [row.negatives for row in rows] == [(), ()]
    assert (report.rows_without, report.rows_without_gold, report.kept) == (2, 2, 0)
    assert "2 of them since no gold was found" in str(report)
    rows, report = mine([ROW], Listed(found), FilterSettings(), keep_given=False)
    assert (len(rows[0].negatives), report.rows_without_gold) == (4, 0)


def test_a_title_that_holds_the_answer_is_doubted_too_and_verdicts_are_no_answers() -> None:
    found = [Passage("titled", "Ann", "x"), Passage("split", "Jo", "Ann y"), Passage("said", "T", "yes, that is true.")]
    row = TrainingRow("q", "who?", (passage("gold"),), (), ("Ann", "Jo Ann", "Yes.", "true"))
    rows, report = mine([row], Listed(found), FilterSettings(drop_answers=True))
    assert [p.id for p in rows[0].negatives] == ["said"]
    assert report.with_answer == 2


def test_a_gold_is_known_by_its_text_too_and_no_row_keeps_it() -> None:
    twin = Passage("twin", "GOLD", "text of gold")
    rows, report = mine([ROW], Listed([twin, passage("x")]), FilterSettings(), keep_given=False)
    assert [p.id for p in rows[0].negatives] == ["x"]
    assert (report.hits, report.golds, report.kept) == (2, 1, 1)


def test_golds_of_all_rows_with_one_query_are_no_negatives() -> None:
    rows = [TrainingRow("1", "same", (passage("a"),)), TrainingRow("2", "same", (passage("b"),))]
    mined, _ = mine(rows, Listed([passage("a"), passage("b"), passage("c")]), FilterSettings())
    assert [[p.id for p in row.negatives] for row in mined] == [["c"], ["c"]]


def test_a_copy_of_the_passage_that_a_sentence_was_taken_from_is_no_negative() -> None:
    sentence = "The mill of the town stands on a hill."
    row = TrainingRow("q", sentence, (Passage("7", "Town", "It is old."),))
    hits = [Passage("7", "Town", f"It is old. {sentence}"), Passage("99", "Copy", f"Well. {sentence}"), passage("x")]
    assert [p.id for p in mine([row], Listed(hits), FilterSettings())[0][0].negatives] == ["x"]


def test_copies_of_golds_are_masked_by_id_in_a_fixed_table() -> None:
    gold, copy = Passage("7", "Town", "It is old."), Passage("7", "Town", "It is old. It is large.")
    passages = [passage("x"), copy, gold]
    sampler = BatchSampler([TrainingRow("q", "what?", (gold,))], 1, 0, seed=0)
    key = one_key(passages)
    places = {content_key(p): place for place, p in enumerate(passages)}
    targets = sampler.batch_against(0, passages, places, Columns([key(p) for p in passages], key)).targets
    assert (targets.positive.tolist(), targets.masked.tolist()) == ([2], [[False, True, False]])


def test_what_is_the_same_through_a_third_passage_is_the_same() -> None:
    a, b, c = (
        Passage("1", "Town", "It is old."),
        Passage("1", "Town", "It is large."),
        Passage("2", "Town", "It is large."),
    )
    other = Passage("3", "Town", "It is small.")
    for order in itertools.permutations([a, b, c, other]):
        key = one_key(order)
        assert key(a) == key(b) == key(c) != key(other)


def test_random_negatives_are_seeded_and_of_the_window() -> None:
    drawn = mined_ids(negatives=2, sampling="random", seed=1)
    assert drawn == mined_ids(negatives=2, sampling="random", seed=1)
    assert len({tuple(mined_ids(negatives=2, sampling="random", seed=s)) for s in range(12)}) > 1


def test_a_window_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValueError, match="last_rank"):
        FilterSettings(first_rank=5, last_rank=4)


def test_passages_of_rows_are_distinct() -> None:
    rows = [ROW, TrainingRow("r", "r", (passage("given"),))]
    assert [p.id for p in passages_of(rows)] == ["gold", "given"]


# Queries from passages alone


def test_cloze_asks_for_a_passage_with_one_of_its_sentences(tmp_path: Path) -> None:
    sentences = [f"The {word} of the town stands on its own hill." for word in ("church", "school", "mill")]
    corpus = [{"_id": f"p{n}", "title": f"Town {n}", "text": " ".join(sentences)} for n in range(200)]
    path = written(tmp_path / "corpus.jsonl", [*corpus, {"_id": "short", "title": "T", "text": "One sentence only."}])
    rows = load(path, layout="cloze")
    assert [row.positives[0].id for row in rows] == [f"p{n}" for n in range(200)]
    assert {row.query for row in rows} == set(sentences)
    kept = [row.query in row.positives[0].text for row in rows]
    for row, whole in zip(rows, kept, strict=True):
        assert row.positives[0].text == " ".join(s for s in sentences if whole or s != row.query)
    assert 5 <= sum(kept) <= 40  # a tenth of 200
    assert load(path, layout="cloze") == rows


def test_a_limit_of_cloze_rows_is_a_sample_of_the_whole_corpus(tmp_path: Path) -> None:
    text = "The first thing about it is this one. The second thing about it is that one."
    corpus = written(tmp_path / "c.jsonl", [{"_id": str(n), "title": "", "text": text} for n in range(300)])
    ids = sorted(int(row.positives[0].id) for row in load(corpus, layout="cloze", limit=60))
    assert len(set(ids)) == 60
    assert ids[0] < 60 and ids[-1] > 240 and 100 < sum(ids) / 60 < 200


def test_a_title_asks_for_its_text_which_is_then_without_it(tmp_path: Path) -> None:
    corpus = [{"_id": f"p{n}", "title": f" Town {n // 2} ", "text": f"It has {n} hills."} for n in range(40)]
    path = written(tmp_path / "c.jsonl", [*corpus, {"_id": "untitled", "title": " ", "text": "Nothing is known."}])
    rows = load(path, layout="title_body")
    assert [row.query for row in rows] == [f"Town {n // 2}" for n in range(40)]
    assert [row.positives for row in rows] == [(Passage(f"p{n}", "", f"It has {n} hills."),) for n in range(40)]
    few = load(path, layout="title_body", limit=10)
    assert few == load(path, layout="title_body", limit=10) and len(few) == 10 and few != rows[:10]


def test_a_corpus_is_pointed_to_cloze(tmp_path: Path) -> None:
    corpus = written(tmp_path / "c.jsonl", [{"_id": "1", "title": "", "text": "words"}])
    with pytest.raises(DataError, match="layout: cloze"):
        load(corpus)
    with pytest.raises(DataError, match="nothing to train on"):
        load(corpus, layout="cloze")
