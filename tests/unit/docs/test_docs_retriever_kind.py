"""The worked example of a new kind of retriever: one folder, and one line in the list of kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli import main as program
from retrieval.config import RetrieverSettings
from retrieval.open import open_retriever
from sleuth.errors import ConfigError

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "sqlite_index"


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    monkeypatch.setitem(RetrieverSettings.KINDS, "sqlite", "sqlite_index.config:SqliteSettings")  # the one line
    rows = [("f", "France", "The capital of France is Paris."), ("e", "England", "London lies on a river.")]
    lines = [json.dumps({"_id": name, "title": title, "text": text}) for name, title, text in rows]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    return tmp_path / "corpus.jsonl"


def ids(retriever: Any, *queries: str) -> list[list[str]]:
    return [[hit.passage.id for hit in hits] for hits in retriever.search(queries, 2)]


def test_it_is_made_from_its_corpus_and_then_known_by_its_path(corpus: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    made = open_retriever(RetrieverSettings.of(kind="sqlite", index=index, corpus=corpus))
    assert ids(made, "capitals", "London rivers", "") == [["f"], ["e"], []]
    again = open_retriever(index)  # what it is, stands in its manifest
    assert again.fingerprint == made.fingerprint
    exact = RetrieverSettings.of(kind="sqlite", index=tmp_path / "exact", corpus=corpus, tokenizer="unicode61")
    assert ids(open_retriever(exact), "capitals", "capital") == [[], ["f"]]
    assert made.search(["capitals"], 3) == made.search(["capitals"], 2)


def test_it_takes_part_wherever_a_retriever_may_stand(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = str(tmp_path / "index")
    open_retriever(RetrieverSettings.of(kind="sqlite", index=index, corpus=corpus))
    hybrid = RetrieverSettings.of(kind="hybrid", parts=[index, {"index": index, "kind": "sqlite"}])
    assert ids(open_retriever(hybrid), "capital") == [["f"]]
    with pytest.raises(SystemExit) as end:
        program.main(["search", index, "capital of France", "--json"])
    assert not end.value.code
    assert json.loads(capsys.readouterr().out)["hits"][0]["id"] == "f"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokeniser": "porter"}, "did you mean 'tokenizer'"),
        ({"k1": 1.2}, "k1 does nothing for a retriever of kind sqlite"),
        ({"index": None}, "index is missing"),
        ({"kind": "bm25", "tokenizer": "trigram"}, "tokenizer does nothing for a retriever of kind bm25"),
    ],
)
def test_its_settings_are_checked_as_those_of_any_kind(corpus: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RetrieverSettings.of(**({"kind": "sqlite", "index": "i"} | change))


@pytest.mark.parametrize("path", sorted(EXAMPLE.glob("*.py")), ids=lambda path: path.name)
def test_its_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60
