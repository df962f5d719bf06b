"""Passages cut into windows: nothing is lost, ids name their parents, and an index says what it is made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.bm25 import BM25Retriever, build_bm25
from retrieval.config import RetrieverSettings
from retrieval.dense.retriever import build_dense
from retrieval.encoders.loading import load_encoder
from retrieval.evaluation.evaluate import retrieve
from retrieval.evaluation.sets import RetrievalSet
from retrieval.ingest import IngestReport, describe_source, ingest
from retrieval.store import PassageStore, StoreWriter
from retrieval.windows import cut
from retrieval.windows_config import WindowSettings
from sleuth.errors import ArtifactError, ConfigError
from sleuth.types import Hit, Image, Passage, Question
from workflows.indexing import windows_asked
from workflows.retrieval_evaluation import _of_whole_passages

LONG = Passage("long", "Numbers", " ".join(map(str, range(100))))
SHORT = Passage("short", "", "A short\n one.")
WINDOW = WindowSettings(words=40, stride=30)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("windows") / "corpus.jsonl"
    rows = [{"_id": p.id, "title": p.title, "text": p.text} for p in (LONG, SHORT)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def bounds(passages: list[Passage]) -> list[tuple[str, str, str]]:
    return [(p.id, p.text.split()[0], p.text.split()[-1]) for p in passages]


def test_windows_overlap_and_name_their_passage() -> None:
    assert bounds(cut(LONG, WINDOW)) == [("long::w0", "0", "39"), ("long::w1", "30", "69"), ("long::w2", "60", "99")]
    assert {window.title for window in cut(LONG, WINDOW)} == {"Numbers"}
    assert bounds(cut(LONG, WindowSettings(words=99)))[-1] == ("long::w1", "99", "99")


def test_a_passage_no_longer_than_a_window_stands_as_it_is() -> None:
    assert cut(LONG, WindowSettings(words=100)) == [LONG]
    assert cut(SHORT, WINDOW) == [SHORT]
    assert cut(Passage("t", "Only a title", ""), WINDOW) == [Passage("t", "Only a title", "")]
    pictured = Passage("p", "", LONG.text, Image("a.png", "0"))
    assert cut(pictured, WINDOW) == [pictured]


@given(
    text=st.text("ab. é東\n\t!", max_size=80),
    unit=st.sampled_from(["words", "sentences"]),
    size=st.integers(1, 5),
    stride=st.integers(1, 5),
)
def test_all_of_a_passage_is_in_its_windows(text: str, unit: str, size: int, stride: int) -> None:
    window = WindowSettings.model_validate({unit: size, "stride": min(size, stride)})
    parts = cut(Passage("p", "", text), window)
    assert all(part.text in text for part in parts)
    assert text.rstrip().endswith(parts[-1].text.rstrip())
    letters = [c for c in text if not c.isspace()]
    whole = cut(Passage("p", "", text), window.model_copy(update={"stride": None}))
    assert [c for part in whole for c in part.text if not c.isspace()] == letters


def test_sentences_and_scripts_without_spaces() -> None:
    said = Passage("p", "", 'J. R. Smith met Dr. Ray. "Hello," he said! 3 men came. 他来了。她走了。')
    assert [w.text for w in cut(said, WindowSettings(sentences=1))] == [
        "J. R. Smith met Dr. Ray.",
        '"Hello," he said!',
        "3 men came.",
        "他来了。",
        "她走了。",
    ]
    assert [w.text for w in cut(Passage("p", "", "東京は首都だ"), WindowSettings(words=4, stride=2))] == [
        "東京は首",
        "は首都だ",
    ]


def test_ingest_counts_what_it_cuts(numbers: Path, tmp_path: Path) -> None:
    report = IngestReport()
    with StoreWriter(tmp_path) as store:
        batches = list(ingest(numbers, store, report, window=WINDOW))
    assert [p.id for batch in batches for p in batch] == ["long::w0", "long::w1", "long::w2", "short"]
    assert report.whole == 2


def test_a_bm25_index_of_windows_is_not_one_of_passages(numbers: Path, tmp_path: Path) -> None:
    whole, windows = tmp_path / "whole", tmp_path / "windows"
    build_bm25(numbers, whole)
    built = build_bm25(numbers, windows, window=WINDOW)
    assert (built.passages, built.whole) == (4, 2)
    retriever = BM25Retriever(windows)
    assert retriever.manifest["corpus"]["window"] == {"words": 40, "stride": 30}
    assert retriever.fingerprint != BM25Retriever(whole).fingerprint
    assert [hit.passage.id for hit in retriever.search(["65"], 5)[0]] == ["long::w1", "long::w2"]
    asked = {"kind": "bm25", "index": windows, "corpus": str(numbers)}
    with pytest.raises(ArtifactError, match="has windows of 40 words every 30, not whole passages"):
        opened(asked)
    with pytest.raises(ArtifactError, match="not windows of 40 words every 40") as caught:
        opened({**asked, "window": {"words": 40}})
    assert f"sleuth index {numbers} --window 40 --stride 40 --out {windows}" in caught.value.hint
    opened({**asked, "window": {"words": 40, "stride": 30}})
    opened({"kind": "bm25", "index": windows})
    with pytest.raises(ArtifactError, match="has whole passages, not windows"):
        opened({"kind": "bm25", "index": whole, "window": {"words": 40}})


def opened(values: object) -> None:
    RetrieverSettings.model_validate(values).open(lambda _: nullcontext())


def test_an_index_that_a_config_names_is_made_of_windows(numbers: Path, encoder_folder: Path, tmp_path: Path) -> None:
    values = {"kind": "dense", "index": tmp_path / "d", "encoder": str(encoder_folder), "corpus": str(numbers)}
    window = {"sentences": 1}
    opened({**values, "window": window})
    assert [p.id for p in PassageStore(tmp_path / "d")] == ["long", "short"]
    with pytest.raises(ArtifactError, match="has windows of 1 sentences every 1, not whole passages"):
        opened(values)


def test_a_killed_build_goes_on_with_the_same_windows_only(numbers: Path, encoder_folder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(encoder_folder)

    def kill(_done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_dense(numbers, tmp_path / "i", encoder, shard=1, window=WINDOW, on_progress=kill)
    other = WindowSettings(words=50)
    assert build_dense(numbers, tmp_path / "i", encoder, shard=1, window=other).passages == 3
    build_dense(numbers, tmp_path / "whole", encoder, shard=1, window=other)
    made, fresh = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("i", "whole"))
    assert made == fresh
    assert (tmp_path / "i" / "vectors.npy").read_bytes() == (tmp_path / "whole" / "vectors.npy").read_bytes()


def test_windows_are_judged_as_their_passages() -> None:
    class Windows:
        """a::w0, a::w1, … of each of three passages in turn."""

        fingerprint = "windows"
        asked: list[int] = []  # noqa: RUF012

        def __len__(self) -> int:
            return 12

        def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
            self.asked.append(k)
            names = [f"{name}::w{n}" for name in "abc" for n in range(4)]
            return [
                [Hit(Passage(name, "", name), 20.0 - n, n + 1) for n, name in enumerate(names[:k])] for _ in queries
            ]

    retriever, queries = Windows(), [Question("q", "?", ())]
    assert retrieve(retriever, queries, 2, whole=True).run == {"q": {"a": 20.0, "b": 16.0}}
    assert retriever.asked == [2, 4, 8]
    assert retrieve(retriever, queries, 9, whole=True).run == {"q": {"a": 20.0, "b": 16.0, "c": 12.0}}
    left = retrieve(retriever, queries, 1, whole=True, left_out=lambda _query: frozenset({"a"}))
    assert left.run == {"q": {"b": 16.0}}
    assert retrieve(retriever, queries, 2).run == {"q": {"a::w0": 20.0, "a::w1": 19.0}}
    judged = [RetrievalSet("s", {"q": queries[0]}, {"q": {name: 1}}) for name in ("a", "a::w1")]
    assert [_of_whole_passages(one) for one in judged] == [True, False]


def test_source_is_described_with_its_windows(numbers: Path) -> None:
    described = describe_source(numbers, WindowSettings(words=9))
    assert described == {**describe_source(numbers), "window": {"words": 9, "stride": 9}}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((None, 3, "words"), "--stride says how windows lie"),
        ((None, None, "sentences"), "--window-unit says how"),
        ((4, 5, "words"), "--stride 5 leaves out what lies between windows of 4 words"),
        ((4, 5, "tokens"), "windows of tokens are not known"),
    ],
)
def test_options_that_make_no_sense_are_refused(asked: tuple[int | None, int | None, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        windows_asked(*asked)


@pytest.mark.parametrize("values", [{}, {"words": 3, "sentences": 2}, {"words": 3, "stride": 4}, {"words": 0}])
def test_settings_that_make_no_sense_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        WindowSettings.model_validate(values)
