"""Queries cropped from passages, labels of teachers by hand, and what a step draws of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.training.augmentation import (
    agreement,
    augment,
    check_passages,
    check_size,
    queries_to_label,
    unjudged,
)
from retrieval.training.augmentation_config import AugmentationSettings
from retrieval.training.crops import crop_passages
from retrieval.training.labels import label, labels_file, rankings, read_labels
from retrieval.training.row import Labels, TrainingRow
from retrieval.training.sampling import BatchSampler
from sleuth.errors import ArtifactError, ConfigError, DataError, RetrieverError
from sleuth.types import Hit, Passage

PASSAGES = [Passage(f"p{i}", f"Title {i}", f"text of {i}") for i in range(10)]


def settings(passages: Path, /, **changes: Any) -> AugmentationSettings:
    basic: dict[str, Any] = {"teachers": [{"kind": "some.module:Teacher"}], "corpus": str(passages)}
    return AugmentationSettings.model_validate(basic | {"positive_ranks": 2, "negative_ranks": [4, 6]} | changes)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    rows = [{"_id": p.id, "title": p.title, "text": p.text} for p in PASSAGES]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def ids(numbers: str) -> tuple[str, ...]:
    return tuple(f"p{number}" for number in numbers)


def named(passages: Sequence[Passage]) -> str:
    return "".join(p.id.removeprefix("p") for p in passages)


class Listed:
    """Finds passages in a fixed order; dies after so many batches."""

    fingerprint = "listed"

    def __init__(self, passages: Sequence[Passage] = PASSAGES, batches: int = 99) -> None:
        self.passages, self.batches = passages, batches
        self.asked: list[str] = []

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        if not self.batches:
            raise RetrieverError("the teacher is gone")
        self.batches -= 1
        self.asked += queries
        return [[Hit(p, 1.0 / (n + 1), n + 1) for n, p in enumerate(self.passages[:k])] for _ in queries]

    def __len__(self) -> int:
        return len(self.passages)


# Crops


@given(st.integers(1, 6), st.integers(0, 5), st.integers(0, 99))
def test_a_crop_is_so_many_words_in_a_row_of_its_passage(shortest: int, more: int, seed: int) -> None:
    passages = [Passage(str(n), "", " ".join(f"w{n}-{i}" for i in range(n))) for n in range(12)]
    crops = crop_passages(passages, 99, (shortest, shortest + more), seed=seed)
    assert [crop.passage.id for crop in crops] == [str(n) for n in range(shortest, 12)]
    for crop in crops:
        assert shortest <= len(crop.text.split()) <= shortest + more
        assert f" {crop.text} " in f" {crop.passage.text} "


def test_crops_are_a_seeded_sample_of_the_whole_corpus_and_each_depends_on_its_passage_alone() -> None:
    passages = [Passage(str(n), "", " ".join(f"{n}-{i}" for i in range(30))) for n in range(300)]
    crops = crop_passages(passages, 60, (5, 9), seed=1)
    numbers = [int(crop.passage.id) for crop in crops]
    assert len(set(numbers)) == 60 and numbers == sorted(numbers)
    assert numbers[0] < 60 and numbers[-1] > 240 and 100 < sum(numbers) / 60 < 200
    assert crops == crop_passages(passages, 60, (5, 9), seed=1) != crop_passages(passages, 60, (5, 9), seed=2)
    every = {crop.passage.id: crop.text for crop in crop_passages(passages, 300, (5, 9), seed=1)}
    assert all(every[crop.passage.id] == crop.text for crop in crops)
    assert {len(text.split()) for text in every.values()} == {5, 6, 7, 8, 9}


def test_queries_are_those_of_data_unjudged_ones_and_crops(corpus: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"_id": "a", "text": "who?"}\n{"id": "b", "question": "where?"}\n{"query": "when?"}\n')
    rows = queries_to_label([], settings(corpus, queries=[str(asked)], crops={"count": 4, "words": 2}), 0)
    assert [row.query for row in rows[:3]] == ["who?", "where?", "when?"]
    assert not any(row.positives for row in rows[:3])
    assert len({row.id for row in rows}) == 7
    assert all(row.id == f"crop-{row.positives[0].id}" and row.query in row.positives[0].text for row in rows[3:])
    with pytest.raises(DataError, match="long enough"):
        queries_to_label([], settings(corpus, crops={"count": 4, "words": 20}), 0)
    asked.write_text('{"_id": "a", "text": " "}\n')
    with pytest.raises(DataError, match="line 1: 'text' is blank"):
        unjudged(str(asked))


# Labels


def test_labels_of_two_teachers_by_hand(corpus: Path) -> None:
    gold = Passage("other", "Title 9", "text of 9")  # p9 under another id
    row = TrainingRow("q", "who?", (gold,), (Passage("given", "", "x"),), ("Ann",))
    first, second = {"who?": ids("0123459")}, {"who?": ids("419083")}
    (made,) = augment([row], [first], settings(corpus))
    assert [(named(x.positives), named(x.negatives), x.share) for x in made.labels] == [("01", "345", 1.0)]
    (made,) = augment([row], [first, second], settings(corpus))
    # 4 is a best hit of the second teacher, 0 one of the first: no negatives; rank 3 of the second is the gold
    assert [(named(x.positives), named(x.negatives), x.share) for x in made.labels] == [
        ("01", "35", 0.5),
        ("41", "83", 0.5),
    ]
    assert (made.positives[0], named(made.positives[1:]), named(made.negatives)) == (gold, "014", "358")
    assert (made.id, made.query, made.answers) == ("q", "who?", ("Ann",))


def test_golds_are_drawn_as_often_as_asked_and_stand_in_where_a_teacher_found_nothing(corpus: Path) -> None:
    judged, unjudged = TrainingRow("q", "who?", (PASSAGES[7],)), TrainingRow("r", "where?", ())
    found = {"who?": ids("012345"), "where?": ids("543210")}
    labels = [row.labels for row in augment([judged, unjudged], [found], settings(corpus, golds=0.25))]
    assert [[(named(x.positives), named(x.negatives), x.share) for x in some] for some in labels] == [
        [("01", "345", 0.75), ("7", "345", 0.25)],
        [("54", "210", 1.0)],
    ]
    (only,) = augment([judged], [found], settings(corpus, golds=1))
    assert only.labels == (Labels((PASSAGES[7],), tuple(PASSAGES[3:6]), 1.0),)
    nothing = {"who?": (), "where?": ()}
    (kept,) = augment([judged, unjudged], [nothing], settings(corpus))
    assert kept.labels == (Labels((PASSAGES[7],), (), 1.0),)
    (some,) = augment([judged], [nothing, found], settings(corpus))
    assert [(named(x.positives), x.share) for x in some.labels] == [("01", 1.0)]


def test_a_teacher_is_compared_with_the_golds_that_the_corpus_has(corpus: Path) -> None:
    elsewhere = Passage("none", "", "in no corpus")
    rows = [
        TrainingRow("a", "a?", (PASSAGES[0], Passage("copy", "Title 5", "text of 5"))),
        TrainingRow("b", "b?", (PASSAGES[3], elsewhere)),
        TrainingRow("c", "c?", (elsewhere,)),
        TrainingRow("crop-p4", "text of 4", (PASSAGES[4],)),
    ]
    ranked = {"a?": ids("5012"), "b?": ids("123"), "c?": (), "text of 4": ids("4")}
    found = agreement(rows, ranked, settings(corpus))
    assert found.figures() == {
        "gold_recall": 0.5,
        "crop_recall": 1.0,
        "without_hits": 1,
        "without_negatives": 3,
    }
    assert str(found) == (
        "0.500 of the golds of queries and 1.000 of the passages of crops among its best hits"
        "; nothing for 1 queries; no negatives for 3 queries"
    )
    assert agreement(rows[2:3], ranked, settings(corpus)).figures() == {
        "without_hits": 1,
        "without_negatives": 1,
    }


# Labels on disk


def labelled(teacher: Listed, queries: Sequence[str], path: Path, corpus: Path) -> int:
    return label(
        [TrainingRow(str(number), query, ()) for number, query in enumerate(queries)],
        teacher,
        path,
        name="listed",
        hits=6,
        batch_size=2,
        check=lambda found: check_passages(found, "listed", str(corpus)),
        on_progress=lambda _done, _total: None,
    )


def test_a_teacher_that_fails_half_way_loses_nothing(tmp_path: Path, corpus: Path) -> None:
    queries = ["a", "b", "c", "d", "c", "e"]
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    assert labelled(Listed(), queries, whole, corpus) == 5
    with pytest.raises(RetrieverError, match="gone"):
        labelled(Listed(batches=1), queries, broken, corpus)
    assert list(read_labels(broken)) == ["a", "b"]
    broken.write_text(broken.read_text() + '{"query": "c", "hits": [["p', encoding="utf-8")  # killed while writing
    second = Listed()
    assert labelled(second, queries, broken, corpus) == 3
    assert second.asked == ["c", "d", "e"]
    assert broken.read_bytes() == whole.read_bytes()
    more = Listed()
    assert labelled(more, [*queries, "f"], broken, corpus) == 1
    assert more.asked == ["f"]
    assert rankings(broken, ["f", "a"]) == {"f": ids("012345"), "a": ids("012345")}
    assert json.loads(whole.read_text().splitlines()[0])["fingerprint"] == "listed"
    assert labels_file(Listed(), 6) != labels_file(Listed(), 7)


def test_labels_that_are_damaged_or_missing_are_one_clear_line(tmp_path: Path, corpus: Path) -> None:
    path = tmp_path / "labels.jsonl"
    labelled(Listed(), ["a"], path, corpus)
    with pytest.raises(ArtifactError, match="no labels of 1 queries, such as 'b'"):
        rankings(path, ["a", "b"])
    with pytest.raises(ArtifactError, match="no labels of 1 queries"):
        rankings(tmp_path / "none.jsonl", ["a"])
    path.write_text(path.read_text() + '{"query": "b"}\n')
    with pytest.raises(ArtifactError, match="line 3 is no ranking"):
        rankings(path, ["a"])


def test_a_teacher_over_other_passages_is_refused(tmp_path: Path, corpus: Path) -> None:
    path = tmp_path / "labels.jsonl"
    with pytest.raises(DataError, match=r"listed finds the passage x, which .*corpus.jsonl lacks"):
        labelled(Listed([*PASSAGES[:3], Passage("x", "", "unknown")]), ["a"], path, corpus)
    with pytest.raises(DataError, match="passage p1 of listed has another text"):
        labelled(Listed([PASSAGES[0], Passage("p1", "Title 1", "changed")]), ["a"], path, corpus)
    assert read_labels(path) == {}
    with pytest.raises(DataError, match="found the passage x"):
        augment([TrainingRow("q", "a", ())], [{"a": ("p0", "x")}], settings(corpus))


def test_fewer_passages_than_ranks_are_refused(corpus: Path) -> None:
    check_size(Listed(), "listed", settings(corpus))
    with pytest.raises(ConfigError, match=r"listed has 10 passages, but augmentation.negative_ranks end at 11"):
        check_size(Listed(), "listed", settings(corpus, negative_ranks=[4, 11]))


# What a step draws


def drawn(sampler: BatchSampler, steps: int) -> list[tuple[str, str]]:
    batches = [sampler.batch(step) for step in range(steps)]
    return [(named(b.passages[:1]), named(b.passages[1:])) for b in batches]


def test_a_step_draws_a_teacher_then_both_passages_from_it(corpus: Path) -> None:
    row = TrainingRow("q", "who?", ())
    rows = augment([row], [{"who?": ids("0123459")}, {"who?": ids("981276")}], settings(corpus))
    pairs = Counter(drawn(BatchSampler(rows, 1, 1, seed=0), 600))
    assert set(pairs) == {(p, n) for best, low in (("01", "345"), ("98", "276")) for p in best for n in low}
    assert all(count == pytest.approx(50, abs=25) for count in pairs.values())  # each of 12 with equal probability


def test_a_draw_depends_on_seed_epoch_and_row_alone(corpus: Path) -> None:
    asked = [TrainingRow(f"q{n}", f"query {n}", ()) for n in range(5)]
    teachers = [{row.query: ids(order) for row in asked} for order in ("0123456", "9876543")]
    rows = augment(asked, teachers, settings(corpus))

    def by_query(rows: Sequence[TrainingRow], seed: int) -> dict[str, tuple[str, str]]:
        batch = BatchSampler(rows, len(rows), 1, seed).batch(3)
        pairs = zip(batch.passages[: len(rows)], batch.passages[len(rows) :], strict=True)
        return {query: (p.id, n.id) for query, (p, n) in zip(batch.queries, pairs, strict=True)}

    whole = by_query(rows, 7)
    assert whole == by_query(rows, 7) == by_query(rows[::-1], 7) != by_query(rows, 8)
    assert by_query(rows[1:3], 7) == {row.query: whole[row.query] for row in rows[1:3]}


def test_positives_of_every_teacher_are_masked_under_any_id(corpus: Path) -> None:
    """The softmax of a query has no best hit of any teacher, no gold and no copy of one among its negatives."""
    golds = (Passage("gold", "Title 6", "text of 6"),)
    rows = augment(
        [TrainingRow("q", "who?", golds), TrainingRow("r", "where?", ())],
        [{"who?": ids("012345"), "where?": ids("678345")}, {"who?": ids("892345"), "where?": ids("67")}],
        settings(corpus),
    )
    right = {"who?": set("01896"), "where?": set("67")}
    for step in range(40):
        batch = BatchSampler(rows, 2, 3, seed=0).batch(step)
        for place, query in enumerate(batch.queries):
            columns = range(len(batch.passages))
            own = int(batch.targets.positive[place])
            masked = {c for c in columns if bool(batch.targets.masked[place, c])}
            same = {c for c in columns if batch.passages[c].id.removeprefix("p") in right[query]}
            assert masked == same - {own}
            assert own in same


# Settings


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"teachers": []}, "at least 1 item"),
        ({"negative_ranks": [6, 4]}, r"negative_ranks is \[6, 4\]"),
        ({"negative_ranks": 2}, "negative_ranks begin at 2, among the 2 positive_ranks"),
        ({"corpus": None}, "corpus is missing"),
        ({"crops": {"count": 1, "words": [9, 2]}}, r"words is \[9, 2\]"),
        ({"crops": {"count": 1, "words": 0}}, "greater than or equal to 1"),
        (
            {"teachers": [{"kind": "rerank", "model": "m", "depth": 5, "inner": {"index": "i", "kind": "bm25"}}]},
            "teacher 1 orders 5 hits of a query, but negative_ranks end at 6; raise its depth",
        ),
    ],
)
def test_bad_settings_are_refused(corpus: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        settings(corpus, **changes)


def test_an_index_of_a_teacher_is_checked_against_the_passages(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    teachers: list[dict[str, Any]] = [{"kind": "bm25", "index": str(tmp_path / name)} for name in ("there", "mistyped")]
    made = settings(corpus, teachers=[*teachers, teachers[0] | {"corpus": "own"}])
    assert [getattr(made.teacher(n), "corpus", "") for n in (1, 2, 3)] == [str(corpus), None, "own"]
    first = settings(corpus, corpus=None, teachers=[teachers[0] | {"corpus": "own"}])
    assert first.passages == "own"
    inside = {"kind": "rerank", "model": "m", "inner": teachers[0] | {"corpus": "of the part"}}
    assert settings(corpus, corpus=None, teachers=[teachers[1], inside]).passages == "of the part"


def test_a_stage_is_a_teacher_or_all_of_them(corpus: Path) -> None:
    teachers = [{"kind": "some.module:Teacher"}] * 3
    assert settings(corpus, teachers=teachers).stages == [1, 2, 3]
    assert settings(corpus, teachers=teachers, progressive=False).stages == [3]
