"""Questions and judgements that come with pages: those of BEIR folders and of ViDoRe's rows."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_retrieval_pages import GRID, picture, rows_of

from retrieval.evaluation.judgements import read_qrels
from retrieval.pages.write import write_pages
from retrieval.training.config import SourceSettings
from retrieval.training.rows import load_rows
from sleuth.errors import DataError


def beir(folder: Path, texts: dict[str, str], judged: dict[str, int], packed: str = "") -> Path:
    (folder / "qrels").mkdir(parents=True)
    rows = "".join(json.dumps({"_id": name, "title": "", "text": text}) + "\n" for name, text in texts.items())
    with pa.output_stream(str(folder / f"corpus.jsonl{packed}"), compression="detect") as file:
        file.write(rows.encode())
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "Where?"}\n')
    lines = "".join(f"q\t{name}\t{grade}\n" for name, grade in judged.items())
    (folder / "qrels/test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")
    return folder


def vidore(file: Path, *rows: tuple[str | None, bytes | None], name: str = "p.png", **more: object) -> None:
    """Rows of a query and a picture."""
    shown = [{"bytes": data, "path": None} if data is not None else None for _, data in rows]
    table = [
        {"query": query, "image": image, "image_filename": name, **more}
        for (query, _), image in zip(rows, shown, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(table), file)


def test_a_corpus_keeps_its_ids_questions_and_judgements(tmp_path: Path) -> None:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    rows = [
        {"_id": "1", "title": "Oslo", "text": "A town."},
        {"_id": "2", "title": "", "text": " ".join(map(str, range(80)))},
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "Where?"}\n')
    (folder / "qrels/dev.tsv").write_text("query-id\tcorpus-id\tscore\nq\t1\t1\n")
    write_pages(folder, tmp_path / "out", GRID)
    found = rows_of(tmp_path / "out")
    assert [row["_id"] for row in found] == ["1", "2::w0", "2::w1"]
    assert (tmp_path / "out/qrels/dev.tsv").read_text() == (folder / "qrels/dev.tsv").read_text()
    assert (tmp_path / "out/queries.jsonl").exists()


def test_vidore_rows_give_each_page_once_and_their_questions(tmp_path: Path) -> None:
    images = [picture(size=(size, 9)) for size in (10, 11)]
    rows = [
        {"query": query, "image": {"bytes": images[n], "path": None}, "image_filename": f"p{n}.png"}
        for query, n in (("who?", 0), ("what?", 1), ("why?", 1), (None, 0))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    write_pages(tmp_path / "test.parquet", tmp_path / "out")
    assert [row["_id"] for row in rows_of(tmp_path / "out")] == ["p0.png", "p1.png"]
    judged = (tmp_path / "out/qrels/test.tsv").read_text().splitlines()[1:]
    assert judged == ["q0\tp0.png\t1", "q1\tp1.png\t1", "q2\tp1.png\t1"]


def test_vidore_rows_of_one_name_and_several_pictures_are_several_pages(tmp_path: Path) -> None:
    one, other = (picture(size=(size, 9)) for size in (10, 11))
    vidore(tmp_path / "test.parquet", ("who?", one), ("what?", other), ("why?", one), **{"corpus-id": None})
    write_pages(tmp_path / "test.parquet", tmp_path / "out")
    first, second = (row["_id"] for row in rows_of(tmp_path / "out"))
    assert first == "p.png" and second.startswith("p.png-")
    judged = (tmp_path / "out/qrels/test.tsv").read_text().splitlines()[1:]
    assert judged == [f"q0\t{first}\t1", f"q1\t{second}\t1", f"q2\t{first}\t1"]


def test_vidore_shards_beside_a_readme_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "set/data").mkdir(parents=True)
    (tmp_path / "set/README.md").write_text("A data set.")
    vidore(tmp_path / "set/data/test-00000-of-00002.parquet", (None, None), ("who?", picture()), name="a.png")
    vidore(tmp_path / "set/data/test-00001-of-00002.parquet", ("what?", picture(size=(20, 9))), name="b.png")
    with pytest.raises(DataError, match=r"00000-of-00002\.parquet:1: the row has no picture"):
        write_pages(tmp_path / "set", tmp_path / "out")
    report = write_pages(tmp_path / "set", tmp_path / "out", skip_damaged=True)
    assert (report.pages, report.damaged) == (2, 1)
    assert [row["_id"] for row in rows_of(tmp_path / "out")] == ["a.png", "b.png"]
    assert (tmp_path / "out/qrels/test.tsv").read_text().splitlines()[1:] == ["q0\ta.png\t1", "q1\tb.png\t1"]


def test_judgements_of_an_equal_page_are_those_of_the_page_that_is_kept(tmp_path: Path) -> None:
    long = " ".join(map(str, range(80)))
    texts = {"a": "same", "b": "same", "c": "other", "d": long, "e": long}
    source = beir(tmp_path / "in", texts, {"a": 0, "b": 2, "c": 1, "e": 1})
    write_pages(source, tmp_path / "out", GRID)
    assert [row["_id"] for row in rows_of(tmp_path / "out")] == ["a", "c", "d::w0", "d::w1"]
    assert read_qrels(tmp_path / "out/qrels/test.tsv") == {"q": {"a": 2, "c": 1, "d": 1}}


def test_judgements_beside_a_compressed_corpus_go_along(tmp_path: Path) -> None:
    source = beir(tmp_path / "in", {"a": "one"}, {"a": 1}, packed=".gz")
    write_pages(source / "corpus.jsonl.gz", tmp_path / "out", GRID)
    assert read_qrels(tmp_path / "out/qrels/test.tsv") == {"q": {"a": 1}}


def test_a_page_that_was_damaged_is_left_out_of_training_and_any_other_that_lacks_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = beir(tmp_path / "in", {"a": "here", "b": "there"}, {"a": 1, "b": 1})
    rows = [json.loads(line) for line in (source / "corpus.jsonl").read_text().splitlines()]
    (source / "b.png").write_bytes(picture()[:-40])
    rows[1]["image"] = "b.png"
    (source / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert write_pages(source, tmp_path / "out", GRID, skip_damaged=True).damaged == 1
    given = [SourceSettings(path=str(tmp_path / "out"), split="test")]
    (row,) = load_rows(given)
    assert [passage.id for passage in row.positives] == ["a"]
    assert "1 judged pages were damaged" in caplog.text
    (row,) = load_rows([given[0].model_copy(update={"corpus": str(tmp_path / "out/corpus.jsonl")})])
    assert [passage.id for passage in row.positives] == ["a"]
    (tmp_path / "out/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\nq\tz\t1\n")
    with pytest.raises(DataError, match="judges the passage z, which the corpus lacks"):
        load_rows(given)


def test_judgements_of_pages_of_a_damaged_document_are_left_out_of_training(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "qrels").mkdir(parents=True)
    (source / "a.txt").write_text("here")
    (source / "b.pdf").write_bytes(b"%PDF-1.4 nothing")
    (source / "queries.jsonl").write_text('{"_id": "q", "text": "Where?"}\n')
    judged = "query-id\tcorpus-id\tscore\n" + "".join(f"q\t{name}\t1\n" for name in ("a.txt", "b.pdf#1", "b.pdf#2"))
    (source / "qrels/test.tsv").write_text(judged)
    write_pages(source, tmp_path / "out", GRID, skip_damaged=True)
    (row,) = load_rows([SourceSettings(path=str(tmp_path / "out"), split="test")])
    assert [passage.id for passage in row.positives] == ["a.txt"]
