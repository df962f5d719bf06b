"""What is downloaded is what the loaders read: small copies in the layouts that are published."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from envs.questions import load_questions
from hub.resources import products_named
from retrieval.corpus import PassageRow, read_rows
from retrieval.dense.published import CorpusLines

FLASHRAG: dict[str, dict[str, Any]] = {
    "nq/test.jsonl": {"id": "test_0", "question": "who?", "golden_answers": ["Ann", "Ann B."]},
    "popqa/test.jsonl": {
        "id": "test_0",
        "question": "What is Ann's job?",
        "golden_answers": ["cook"],
        "metadata": {"subj": "Ann", "prop": "occupation", "s_wiki_title": "Ann"},
    },
    "hotpotqa/dev.jsonl": {
        "id": "dev_0",
        "question": "Where was the cook born?",
        "golden_answers": ["Rome"],
        "metadata": {
            "type": "bridge",
            "level": "hard",
            "supporting_facts": {"title": ["Ann", "Rome"], "sent_id": [0, 0]},
            "context": {"title": ["Ann", "Rome"], "sentences": [["Ann cooks."], ["Rome is a town."]]},
        },
    },
}


@pytest.mark.parametrize("name", FLASHRAG)
def test_flashrags_questions_are_read(tmp_path: Path, name: str) -> None:
    (product,) = products_named(name)
    file = tmp_path / product.path
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(FLASHRAG[name]) + "\n")
    (question,) = load_questions(file)
    assert (question.id, list(question.answers)) == (FLASHRAG[name]["id"], FLASHRAG[name]["golden_answers"])
    assert question.supporting_titles == (("Ann", "Rome") if name.startswith("hotpotqa") else ())


def parquet(rows: list[dict[str, str]]) -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), target)
    return target.getvalue()


def test_a_folder_of_shards_and_a_packed_file_are_one_corpus(tmp_path: Path) -> None:
    rows = [{"_id": str(n), "title": f"Title {n}", "text": "It is so."} for n in range(4)]
    shards, packed = tmp_path / "shards", tmp_path / "packed"
    for folder in (shards, packed):
        folder.mkdir()
    for number, part in enumerate((rows[:2], rows[2:])):
        (shards / f"corpus-0000{number}-of-00002.parquet").write_bytes(parquet(part))
    (packed / "corpus.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    found = [[row.passage for row in read_rows(folder) if isinstance(row, PassageRow)] for folder in (shards, packed)]
    assert found[0] == found[1] and [passage.title for passage in found[0]] == [row["title"] for row in rows]


def test_search_r1s_passages_are_found_by_their_row(tmp_path: Path) -> None:
    file = tmp_path / products_named("wiki18")[0].path
    file.parent.mkdir()
    file.write_text("".join(json.dumps({"id": str(n), "contents": f'"Title {n}"\nText {n}.'}) + "\n" for n in range(3)))
    lines = CorpusLines(file)
    assert (len(lines), lines[2].title, lines[2].text) == (3, "Title 2", "Text 2.")
