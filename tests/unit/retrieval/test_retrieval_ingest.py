from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from retrieval.ingest import BATCH, IngestReport, describe_source, ingest, same_source
from retrieval.store import PassageStore, StoreWriter
from sleuth.errors import DataError

GOOD = [json.dumps({"_id": str(i), "title": f"t{i}", "text": f"text {i}"}) for i in range(3)]
FAULTY = [GOOD[0], '{"_id": "9", "title": "t"}', GOOD[1], GOOD[0], "{broken", GOOD[2]]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(corpus: Path, store: Path, *, skip_bad_rows: bool = False) -> tuple[IngestReport, list[str]]:
    report, seen = IngestReport(), []
    with StoreWriter(store) as writer:
        for batch in ingest(corpus, writer, report, skip_bad_rows=skip_bad_rows):
            seen += [passage.id for passage in batch]
    return report, seen


def test_bad_rows_are_all_named_by_file_and_line(tmp_path: Path) -> None:
    corpus = write(tmp_path / "c.jsonl", FAULTY)
    with pytest.raises(DataError) as caught:
        run(corpus, tmp_path / "store")
    assert caught.value.message == f"{corpus}:2: no text; {corpus}:4: duplicate id; {corpus}:5: broken JSON"
    assert "--skip-bad-rows" in caught.value.hint


def test_bad_rows_are_skipped_and_counted_under_the_flag(tmp_path: Path) -> None:
    report, seen = run(write(tmp_path / "c.jsonl", FAULTY), tmp_path / "store", skip_bad_rows=True)
    assert report.skipped == {"no text": 1, "duplicate id": 1, "broken JSON": 1}
    assert [row.line for row in report.examples] == [2, 4, 5]
    assert seen == [passage.id for passage in PassageStore(tmp_path / "store")] == ["0", "1", "2"]


def test_only_a_few_of_many_bad_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"5: broken JSON; .*6: broken JSON \(and 94 more near them\)"):
        run(write(tmp_path / "c.jsonl", [GOOD[0], *["{"] * 99]), tmp_path / "store")


def test_a_duplicate_far_behind_is_found(tmp_path: Path) -> None:
    rows = [json.dumps({"_id": str(i), "text": "x"}) for i in range(3 * BATCH)]
    corpus = write(tmp_path / "c.jsonl", [*rows, rows[0]])
    with pytest.raises(DataError, match=rf"c\.jsonl:{3 * BATCH + 1}: duplicate id"):
        run(corpus, tmp_path / "store")


@pytest.mark.parametrize("lines", [[], ["{"], ['{"_id": "1", "text": ""}']])
def test_a_corpus_without_a_passage_is_refused_also_under_the_flag(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(DataError, match="has no passages"):
        run(write(tmp_path / "c.jsonl", lines), tmp_path / "store", skip_bad_rows=True)


def test_a_corpus_is_known_again_by_content_not_by_time(tmp_path: Path) -> None:
    corpus = write(tmp_path / "c.jsonl", GOOD)
    recorded = json.loads(json.dumps(describe_source(corpus)))
    assert same_source(recorded, corpus)
    os.utime(corpus, (1, 1))
    assert same_source(recorded, corpus)
    write(corpus, [GOOD[0], GOOD[2], GOOD[1]])  # as many bytes, other content
    os.utime(corpus, (2, 2))
    assert not same_source(recorded, corpus)
    write(corpus, GOOD[:2])
    assert not same_source(recorded, corpus)
    write(tmp_path / "d.jsonl", GOOD)
    assert not same_source(recorded, tmp_path)
