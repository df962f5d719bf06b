"""Files as the field keeps them: compressed, tables, Parquet; and what is not read says what it is."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import sqlite3
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from envs.questions import load_questions
from retrieval.corpus import read_rows as read_corpus
from sleuth.errors import DataError
from sleuth.files import on_hub, open_data, parquet_rows, stem_of, suffix_of

ROWS = [{"id": "1", "question": "Who?", "golden_answers": ["Ann"], "text": "Ann did."}]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


def as_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("q.jsonl", TEXT)


def as_sqlite(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("create table q (id text)")


def tar_bytes() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("q.jsonl"), io.BytesIO())
    return held.getvalue()


OTHERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a gzip file": ("q.jsonl", lambda path: path.write_bytes(gzip.compress(TEXT.encode()))),
    "a zstd file": ("q.jsonl", lambda path: path.write_bytes(zstd(TEXT.encode()))),
    "a zip archive": ("q.jsonl", as_zip),
    "a zip archive, not a gzip file": ("q.jsonl.gz", as_zip),
    "a Parquet file": ("q", lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path)),
    "a Python pickle": ("q.pkl", lambda path: path.write_bytes(pickle.dumps(ROWS))),
    "an SQLite database": ("q.db", as_sqlite),
    "a tar archive": ("q.tar.gz", lambda path: path.write_bytes(gzip.compress(tar_bytes()))),
    "UTF-16 text": ("q.tsv", lambda path: path.write_text("id\ttext\n1\tAnn\n", encoding="utf-16")),
    "UTF-16 text (": ("q.jsonl", lambda path: path.write_text(TEXT, encoding="utf-16-le")),
    "a Git LFS pointer": ("q.jsonl", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n")),
    "UTF-32 text": ("q.jsonl", lambda path: path.write_text(TEXT, encoding="utf-32")),
    "a web page": ("q.jsonl", lambda path: path.write_text("<!DOCTYPE html><title>Sign in</title>")),
    "a web page (": ("q.jsonl", lambda path: path.write_text("\n\n<!doctype HTML><title>Sign in</title>")),
    "XML": ("q.jsonl", lambda path: path.write_text('<?xml version="1.0"?><rows/>')),
    "binary data that begins with the bytes 89 50 4e 47 0d 0a 1a 0a (": (
        "q.jsonl",
        lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"),
    ),
    "text, not a gzip file": ("q.jsonl.gz", lambda path: path.write_text(TEXT)),
    "text, not a zstd file": ("q.jsonl.zst", lambda path: path.write_text(TEXT)),
    "no Parquet file": ("q.parquet", lambda path: path.write_text(TEXT)),
    "a zip archive (": ("q.parquet", as_zip),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("read", [load_questions, lambda path: list(read_corpus(path))], ids=["questions", "corpus"])
def test_what_is_not_read_says_what_it_is(tmp_path: Path, what: str, read: Callable[[Path], object]) -> None:
    name, write = OTHERS[what]
    write(tmp_path / name)
    with pytest.raises(DataError) as caught:
        read(tmp_path / name)
    said = str(caught.value)
    assert f"{name} is {what}" in said and caught.value.hint
    assert "UTF-8" not in said.replace("-t UTF-8", "") and "\n" not in said


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstd)])
def test_compressed_files_may_have_several_members_and_must_be_whole(tmp_path: Path, suffix: str, pack) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(b"one\n") + pack(b"two\n"))
    with open_data(path) as file:
        assert list(file) == [b"one\n", b"two\n"]
    whole = pack(bytes(range(256)) * 1000)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"is not a whole (gzip|zstd) file"), open_data(path) as file:
        file.read()
    path.write_bytes(pack(b""))
    with open_data(path) as file:
        assert file.read() == b""


def test_a_cut_parquet_file_is_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet"):
        list(parquet_rows(tmp_path / "a.parquet"))
    with pytest.raises(DataError, match="no file"):
        list(parquet_rows(tmp_path / "b.parquet"))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".tsv", ".parquet"])
def test_a_large_corpus_is_read_in_little_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"corpus{suffix}"
    count, text = 6_000, "A town by a river. " * 100
    rows = ({"id": str(i), "title": "T", "text": text} for i in range(count))
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        lines = [json.dumps(row) for row in rows] if "json" in suffix else ["id\ttitle\ttext"]
        lines += [f"{i}\tT\t{text}" for i in range(count)] if suffix == ".tsv" else []
        content = "\n".join(lines).encode()
        pack = {".gz": lambda data: gzip.compress(data, 1), ".zst": zstd}.get(path.suffix, bytes)
        path.write_bytes(pack(content))
    tracemalloc.start()
    assert sum(1 for _ in read_corpus(path)) == count
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6e6, "the texts alone are 11 MB"


def test_a_row_group_of_parquet_is_not_read_at_once(tmp_path: Path) -> None:
    rows = [{"id": str(i), "text": os.urandom(1000).hex()} for i in range(20_000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet", row_group_size=len(rows))
    before = pa.total_allocated_bytes()
    peak = max(pa.total_allocated_bytes() - before for _ in parquet_rows(tmp_path / "c.parquet"))
    assert peak < 15e6, "the row group is 40 MB"


def test_names_of_files_and_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (suffix_of("a/b.JSONL.gz"), stem_of("a/NQ-open.dev.jsonl.zst")) == (".jsonl", "NQ-open.dev")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert on_hub("owner/name") and on_hub("hf://owner/name/train")
    assert not any(map(on_hub, ["data/absent", "owner/name.jsonl.gz", "./owner/name", "/owner/name", "a/b/c", "name"]))
