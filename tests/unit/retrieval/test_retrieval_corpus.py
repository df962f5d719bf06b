from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.corpus import BadRow, PassageRow, corpus_files, read_rows
from sleuth.errors import ConfigError, DataError
from sleuth.types import Passage

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
WORDS = TEXT.filter(lambda text: bool(text.strip()))
TITLES = TEXT.filter(lambda text: "\n" not in text and text == text.strip() and '"' not in text)


def as_beir(p: Passage) -> dict[str, Any]:
    return {"_id": p.id, "title": p.title, "text": p.text, "metadata": {}}


def as_search_r1(p: Passage) -> dict[str, Any]:
    return {"id": p.id, "contents": f'"{p.title}"\n{p.text}'}


def as_pyserini(p: Passage) -> dict[str, Any]:
    return {"id": p.id, "contents": p.text}


def read(path: Path, layout: str | None = None) -> list[Passage]:
    rows = list(read_rows(path, layout))
    assert not [row for row in rows if isinstance(row, BadRow)]
    return [row.passage for row in rows if isinstance(row, PassageRow)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


SAMPLE = [Passage("1", "Arden", "A town.\nOn a river."), Passage("2", 'The "Brill"', "Another\ntown.")]


@pytest.mark.parametrize("name", ["corpus.jsonl", "rows.jsonl.gz"])
@pytest.mark.parametrize("layout", [as_beir, as_search_r1])
def test_layout_is_found_and_passages_are_whole(tmp_path: Path, layout: Any, name: str) -> None:
    assert read(write(tmp_path / name, [layout(p) for p in SAMPLE])) == SAMPLE


def test_a_title_is_enough_for_a_passage(tmp_path: Path) -> None:
    for number, text in enumerate(("", " ", None)):
        rows = [{"_id": "1", "title": "Arden", "text": text}, {"_id": "2", "title": "", "text": "A town."}]
        assert read(write(tmp_path / f"{number}.jsonl", rows))[0] == Passage("1", "Arden", text or "")
    assert read(write(tmp_path / "s.jsonl", [as_search_r1(Passage("1", "Arden", ""))])) == [Passage("1", "Arden", "")]


def test_bright_has_ids_and_content(tmp_path: Path) -> None:
    rows = [{"id": "bee/1_0.txt", "content": "Bees dance."}]
    assert read(write(tmp_path / "d.jsonl", rows)) == [Passage("bee/1_0.txt", "", "Bees dance.")]


def test_pyserini_contents_are_the_text_and_a_title_field_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [as_pyserini(SAMPLE[0]), {**as_pyserini(SAMPLE[1]), "title": "T"}])
    assert read(path) == [Passage("1", "", SAMPLE[0].text), Passage("2", "T", SAMPLE[1].text)]


@given(st.lists(st.builds(Passage, WORDS.filter(lambda i: len(i.encode()) < 500), TITLES, WORDS), min_size=1))
def test_any_passages_come_back_from_every_layout(
    tmp_path_factory: pytest.TempPathFactory, found: list[Passage]
) -> None:
    folder = tmp_path_factory.mktemp("corpora")
    assert read(write(folder / "b.jsonl", [as_beir(p) for p in found]), "beir") == found
    assert read(write(folder / "s.jsonl", [as_search_r1(p) for p in found]), "search_r1") == found
    untitled = [Passage(p.id, "", p.text) for p in found]
    assert read(write(folder / "p.jsonl", [as_pyserini(p) for p in found]), "pyserini") == untitled


@given(
    st.lists(
        st.one_of(st.binary(), st.recursive(st.none() | st.integers() | TEXT, st.lists).map(json.dumps).map(str.encode))
    )
)
def test_no_bytes_crash_the_reader(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    with contextlib.suppress(DataError):  # what begins as an archive does is named as one
        assert all(isinstance(row, BadRow) for row in read_rows(path, "beir"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"_id": "x", "title": "t"}', "no text"),
        (b'{"_id": "x", "title": "", "text": null}', "empty text"),
        (b'{"_id": "x", "title": " ", "text": " \\n "}', "empty text"),
        (b'{"_id": "x", "title": "t", "text": 3}', "text is not a string"),
        (b'{"_id": "x", "title": ["t"], "text": "a"}', "title is not a string"),
        (b'{"_id": "", "title": "t", "text": "a"}', "no id"),
        (b'{"_id": true, "title": "t", "text": "a"}', "no id"),
        (b'{"title": "t", "text": "a"}', "no id"),
        (b'{"_id": "x", "text": "a"', "broken JSON"),
        (b"[" * 100_000, "broken JSON"),
        (b'["x", "t", "a"]', "not a JSON object"),
        (b'{"_id": "x", "text": "caf\xe9"}', "text in another encoding than UTF-8"),
        (b'{"_id": "x", "text": "half \\ud83d pair"}', "half a surrogate pair"),
        (b'{"_id": "' + b"x" * 513 + b'", "text": "a"}', "id longer than 512 bytes"),
    ],
)
def test_a_bad_row_is_named_by_line_and_the_others_are_read(tmp_path: Path, line: bytes, reason: str) -> None:
    good = json.dumps(as_beir(SAMPLE[0])).encode()
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\n" + line + b"\n" + good + b"\n")
    rows = list(read_rows(path))
    assert [row for row in rows if isinstance(row, BadRow)] == [BadRow(reason, path, 3)]
    assert [row.line for row in rows] == [1, 3, 4]
    assert str(rows[1]) == f"{path}:3: {reason}"


def test_a_broken_first_row_does_not_decide_the_layout(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"id":\n{"id": "0"}\n' + json.dumps(as_search_r1(SAMPLE[0])) + "\n")
    rows = list(read_rows(path))
    assert [str(row).rpartition(": ")[2] for row in rows[:2]] == ["broken JSON", "no text"]
    assert rows[2] == PassageRow(SAMPLE[0], path, 3)


def test_folder_prefers_corpus_and_otherwise_reads_all_in_order(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", [as_beir(SAMPLE[1])])
    write(tmp_path / "a.jsonl.gz", [as_beir(SAMPLE[0])])
    assert read(tmp_path) == SAMPLE
    write(tmp_path / "corpus.jsonl", [as_beir(SAMPLE[1])])
    assert corpus_files(tmp_path) == [tmp_path / "corpus.jsonl"]


def test_what_is_no_corpus_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"did you mean 'corpus\.jsonl'"):
        write(tmp_path / "corpus.jsonl", [])
        list(read_rows(tmp_path / "corpsu.jsonl"))
    with pytest.raises(DataError, match="no known corpus layout has the keys question, text"):
        list(read_rows(write(tmp_path / "q.jsonl", [{"question": "?", "text": "a"}])))
    with pytest.raises(ConfigError, match="did you mean 'beir'"):
        list(read_rows(tmp_path / "corpus.jsonl", "bier"))
    with pytest.raises(DataError, match="holds no corpus"):
        corpus_files(tmp_path_empty(tmp_path))
    whole = gzip.compress(b'{"_id": "1", "text": "a"}\n' * 1000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a whole gzip file"):
        list(read_rows(tmp_path / "cut.jsonl.gz"))
    (tmp_path / "fake.jsonl.gz").write_bytes(b"{}")
    with pytest.raises(DataError, match="is text, not a gzip file"):
        list(read_rows(tmp_path / "fake.jsonl.gz"))
    (tmp_path / "a.json").write_text(json.dumps([as_beir(p) for p in SAMPLE], indent=1))
    with pytest.raises(DataError, match="is one JSON array, not JSON lines"):
        list(read_rows(tmp_path / "a.json"))


def tmp_path_empty(tmp_path: Path) -> Path:
    empty = tmp_path / "empty"
    empty.mkdir()
    return empty
