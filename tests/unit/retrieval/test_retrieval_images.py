"""Passages with pictures: corpus, store, index, search, service and trajectory files."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow
from typer.testing import CliRunner

from cli.main import main, make_app
from hub.pictures import read_image
from retrieval.corpus import BadRow, image_files, read_rows
from retrieval.dense.retriever import open_dense
from retrieval.encoders.loading import open_encoder
from retrieval.encoders.modalities import TEXT, Modalities
from retrieval.open import open_retriever
from retrieval.passages import content_key
from retrieval.service.remote import RemoteRetriever
from retrieval.store import IMAGES, PASSAGES, PassageStore, StoreWriter
from sleuth.errors import ArtifactError, ConfigError, DataError
from sleuth.trajectories import close_trajectories, read_trajectories, to_line
from sleuth.types import Generation, Image, Passage, Question, ScoredTrajectory, Search, Segment, Trajectory, Turn

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "grey": (9, 9, 9)}


class MeanColour:
    dimension = 3
    modalities = Modalities(query=frozenset({"text"}), passage=frozenset({"image"}))

    def encode_queries(self, queries):
        return [np.array(COLOURS[query]) / 255 for query in queries]

    def encode_passages(self, passages):
        pictures = [Pillow.open(io.BytesIO(read_image(p.image))).convert("RGB") for p in passages]
        return [np.asarray(picture).mean(axis=(0, 1)) / 255 for picture in pictures]


class ReadsNoQueries(MeanColour):
    modalities = Modalities(query=frozenset({"image"}), passage=frozenset({"image"}))


ENCODER = "test_retrieval_images:MeanColour"


def picture(colour: tuple[int, int, int], kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Pillow.new("RGB", (4, 3), colour).save(file, kind)
    return file.getvalue()


def error_of(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """What the program says on one line of standard error before it ends with status 2."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    return " ".join(capfd.readouterr().err.split())


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five pictures beside a corpus.jsonl; two passages have a title, one a text too."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    folder = tmp_path / "corpus"
    (folder / "pages").mkdir(parents=True)
    rows = []
    for name, colour in COLOURS.items():
        (folder / "pages" / f"{name}.png").write_bytes(picture(colour))
        rows.append({"_id": name, "image": f"pages/{name}.png"})
    rows[0] |= {"title": "Red", "text": "A red page."}
    rows[1] |= {"title": "Green"}
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "corpus.jsonl"


@pytest.fixture
def index(corpus: Path) -> Path:
    out = corpus.parent.parent / "index"
    words = ["index", str(corpus), "--out", str(out), "--kind", "dense", "--encoder", ENCODER]
    assert CliRunner().invoke(make_app(), words).exit_code == 0
    return out


def test_pictures_are_indexed_and_found_though_the_corpus_is_gone(corpus: Path, index: Path) -> None:
    pages = {name: (corpus.parent / f"pages/{name}.png").read_bytes() for name in COLOURS}
    shutil.rmtree(corpus.parent)
    index = index.rename(index.with_name("moved"))
    done = CliRunner().invoke(make_app(), ["search", str(index), "green", "grey", "-k", "2", "--json"])
    assert done.exit_code == 0, done.output
    found = [json.loads(line)["hits"] for line in done.stdout.splitlines()]
    assert found[0][0] | {"score": 1.0} == {
        "id": "green",
        "title": "Green",
        "text": "",
        "image": "pages/green.png",
        "score": 1.0,
        "rank": 1,
    }
    shown = CliRunner().invoke(make_app(), ["search", str(index), "blue", "-k", "1"])
    assert "(pages/blue.png)" in shown.stdout
    for hits in open_retriever(index).search(list(COLOURS), 5):
        assert all(read_image(hit.passage.image) == pages[hit.passage.id] for hit in hits)


def test_equal_pictures_are_stored_once(tmp_path: Path) -> None:
    same = Image("a.png", "0" * 64, picture((1, 2, 3)))
    passages = [Passage("1", "", "", same), Passage("2", "", "x", replace(same, name="b.png")), Passage("3", "", "y")]
    with StoreWriter(tmp_path) as store:
        store.add(passages)
    assert (tmp_path / IMAGES).stat().st_size == len(picture((1, 2, 3)))
    assert list(PassageStore(tmp_path)) == passages


def test_a_store_of_texts_is_what_it_was(tmp_path: Path) -> None:
    with StoreWriter(tmp_path) as store:
        store.add([Passage("1", "T", "x")])
    assert (tmp_path / PASSAGES).read_bytes() == b'{"id":"1","title":"T","text":"x"}\n'
    assert not (tmp_path / IMAGES).exists()
    assert content_key(Passage("1", "T", "x")) == "T\x1fx"


def test_passages_with_other_pictures_are_others(tmp_path: Path) -> None:
    one, two = (Passage("1", "T", "x", Image("a.png", digest * 64)) for digest in "01")
    assert one != two and content_key(one) != content_key(two)
    assert content_key(one) == content_key(Passage("2", "T", "x", Image("b.png", "0" * 64)))


def test_the_hash_of_a_corpus_covers_its_pictures(corpus: Path, tmp_path: Path) -> None:
    def digest(name: str) -> str:
        with StoreWriter(tmp_path / name) as store:
            store.add([row.passage for row in read_rows(corpus) if not isinstance(row, BadRow)])
        return store.digest

    before = digest("before")
    assert digest("again") == before
    (corpus.parent / "pages/red.png").write_bytes(picture((254, 0, 0)))
    assert digest("after") != before


def test_a_changed_picture_is_another_corpus(corpus: Path, index: Path) -> None:
    settings = {"kind": "dense", "index": str(index), "corpus": str(corpus), "encoder": ENCODER}
    from retrieval.config import RetrieverSettings

    assert open_retriever(RetrieverSettings.of(**settings))
    (corpus.parent / "pages/red.png").touch()
    assert open_retriever(RetrieverSettings.of(**settings))
    (corpus.parent / "pages/red.png").write_bytes(picture((254, 0, 0)) + b"\0")
    with pytest.raises(ArtifactError, match="other passages"):
        open_retriever(RetrieverSettings.of(**settings))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_the_usual_kinds_of_picture_are_read(corpus: Path, kind: str) -> None:
    (corpus.parent / "pages/red.png").write_bytes(picture((255, 0, 0), kind))
    assert not [row for row in read_rows(corpus) if isinstance(row, BadRow)]


@pytest.mark.parametrize("layout", ["beir", "search_r1", "pyserini"])
def test_every_layout_takes_pictures(corpus: Path, layout: str) -> None:
    row = {"beir": {"_id": "1", "title": "T"}, "search_r1": {"id": "1", "contents": '"T"\n'}, "pyserini": {"id": "1"}}
    corpus.write_text(json.dumps({**row[layout], "image": "pages/red.png"}) + "\n")
    (found,) = read_rows(corpus)
    assert not isinstance(found, BadRow) and found.passage.image is not None
    assert found.passage.title == ("" if layout == "pyserini" else "T") and found.passage.text == ""


@pytest.mark.parametrize("name", ["c.tsv", "c.parquet", "c.jsonl.zst"])
def test_every_kind_of_file_takes_pictures(corpus: Path, name: str) -> None:
    path = corpus.with_name(name)
    rows = [{"id": "1", "text": "", "image": "pages/red.png"}, {"id": "2", "text": "A town.", "image": None}]
    if name == "c.tsv":
        path.write_text("id\ttext\timage\n1\t\tpages/red.png\n2\tA town.\t\n")
    elif name == "c.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(pa.compress("\n".join(map(json.dumps, rows)).encode(), codec="zstd", asbytes=True))
    first, second = read_rows(path)
    assert not isinstance(first, BadRow) and first.passage.image is not None
    assert not isinstance(second, BadRow) and (second.passage.text, second.passage.image) == ("A town.", None)
    assert list(image_files(path)) == [corpus.parent / "pages/red.png"]


def test_text_beside_a_picture_is_kept_whatever_the_first_row_has(corpus: Path) -> None:
    rows = [{"id": "1", "image": "pages/red.png"}, {"id": "2", "text": "A town.", "image": "pages/red.png"}]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row.passage.text for row in read_rows(corpus) if not isinstance(row, BadRow)] == ["", "A town."]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("pages/none.png", "no such image"),
        ("pages", "no such image"),
        ("../secret.png", "image outside the corpus folder"),
        ("pages/link.png", "image outside the corpus folder"),
        ("/etc/hostname", "image outside the corpus folder"),
        ("corpus.jsonl", "image is not a picture"),
        ("pages/torn.png", "image is not a picture"),
        ("pages/empty.png", "image is not a picture"),
        ("pages/pipe.png", "no such image"),
        ("pages/circle.png", "no such image"),
        ("a\0b", "no such image"),
        ("\ud800.png", "no such image"),
        ("x" * 5000, "no such image"),
        ("", "image is not a path"),
        (3, "image is not a path"),
    ],
)
def test_a_bad_picture_is_a_bad_row(corpus: Path, image: object, reason: str) -> None:
    (corpus.parent.parent / "secret.png").write_bytes(picture((1, 1, 1)))
    (corpus.parent / "pages/link.png").symlink_to(corpus.parent.parent / "secret.png")
    (corpus.parent / "pages/torn.png").write_bytes(picture((1, 1, 1))[:40])
    (corpus.parent / "pages/empty.png").write_bytes(b"")
    (corpus.parent / "pages/circle.png").symlink_to("circle.png")
    os.mkfifo(corpus.parent / "pages/pipe.png")
    corpus.write_text(json.dumps({"_id": "1", "text": "x", "image": image}) + "\n")
    (found,) = read_rows(corpus)
    assert isinstance(found, BadRow) and found.reason == reason


def test_neither_text_nor_picture_is_empty_as_ever(corpus: Path) -> None:
    corpus.write_text('{"_id": "1", "text": " ", "image": null}\n{"_id": "2"}\n')
    assert [row.reason for row in read_rows(corpus) if isinstance(row, BadRow)] == ["empty text", "no text"]


def test_a_text_encoder_refuses_pictures_before_it_encodes(corpus: Path, tmp_path: Path, capfd) -> None:
    (tmp_path / "plain.py").write_text(
        "class Plain:\n    dimension = 1\n"
        "    def encode_queries(self, texts): raise AssertionError\n"
        "    encode_passages = encode_queries\n"
    )
    words = ["index", str(corpus), "--out", str(tmp_path / "i"), "--kind", "dense", "--encoder", "plain:Plain"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        error = error_of(words, capfd)
    assert "plain:Plain reads text of passages, but passage blue has only image" in error


def test_an_encoder_of_pictures_refuses_texts(corpus: Path, tmp_path: Path, capfd) -> None:
    corpus.write_text('{"_id": "1", "text": "x"}\n')
    words = ["index", str(corpus), "--out", str(tmp_path / "i"), "--kind", "dense", "--encoder", ENCODER]
    assert "reads image of passages, but passage 1 has only text" in error_of(words, capfd)


def test_an_encoder_that_reads_no_queries_of_text_is_not_searched_with(index: Path) -> None:
    from retrieval.dense.retriever import dense_retriever

    made = open_retriever(index, cached=False, resilient=False)
    other = open_encoder("test_retrieval_images:ReadsNoQueries")
    with pytest.raises(ConfigError, match="reads image of queries, but queries are text"):
        dense_retriever(other, made.index.vectors, made.passages, "i", "f")


def test_bm25_cannot_index_a_passage_without_words(corpus: Path, tmp_path: Path, capfd) -> None:
    error = error_of(["index", str(corpus), "--out", str(tmp_path / "bm25")], capfd)
    assert "passage blue has only a picture, which BM25 cannot search" in error
    assert not (tmp_path / "bm25").exists()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("class E:\n    dimension = 2", "has no method encode_queries"),
        ("class E:\n    def __init__(self, size): ...", "does not take these options"),
    ],
)
def test_a_class_that_is_no_encoder_is_told_apart(tmp_path: Path, code: str, error: str) -> None:
    name = f"odd{len(code)}"
    (tmp_path / f"{name}.py").write_text(code + "\n")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ConfigError, match=error):
        patch.syspath_prepend(str(tmp_path))
        open_encoder(f"{name}:E")


def test_the_service_sends_bytes_only_if_asked(index: Path, serving) -> None:
    with serving(open_retriever(index)) as url:
        body = {"queries": ["red"], "topk": 1}
        (document,) = httpx.post(f"{url}/retrieve", json=body).json()["result"][0]
        assert document["contents"] == '"Red"\nA red page.' and document["image"].keys() == {"name", "sha256"}
        (document,) = httpx.post(f"{url}/retrieve", json={**body, "return_images": True}).json()["result"][0]
        assert base64.b64decode(document["image"]["data"]) == picture(COLOURS["red"])
        assert httpx.post(f"{url}/retrieve", json={**body, "return_images": "perhaps"}).status_code == 422
        many = {"queries": ["red"] * 100, "topk": 1, "return_images": True}
        assert "images" in httpx.post(f"{url}/retrieve", json=many).json()["detail"]
        named, whole = RemoteRetriever(url), RemoteRetriever(url, images=True)
        (hit,), (same,) = named.search(["red"], 1)[0], whole.search(["red"], 1)[0]
        assert hit == same and hit.passage == open_retriever(index).search(["red"], 1)[0][0].passage
        assert read_image(same.passage.image) == picture(COLOURS["red"])
        with pytest.raises(DataError, match="only the name is known"):
            read_image(hit.passage.image)
        assert len(whole.search(list(COLOURS) * 30, 1)) == 150


def test_a_service_whose_pictures_are_gone_says_so(index: Path, serving) -> None:
    with serving(open_retriever(index)) as url:
        (index / IMAGES).unlink()
        asked = {"queries": ["red"], "topk": 1, "return_images": True}
        answer = httpx.post(f"{url}/retrieve", json=asked)
    assert answer.status_code == 503 and "cannot read the picture" in answer.json()["detail"]


def test_a_picture_alone_does_not_decide_the_layout(corpus: Path) -> None:
    alone, both = {"id": "1", "title": "T", "image": "pages/red.png"}, {"id": "2", "contents": '"Oslo"\nA town.'}
    for rows in ([alone, both], [both, alone]):
        corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = {row.passage.id: (row.passage.title, row.passage.text) for row in read_rows(corpus)}
        assert found == {"1": ("T", ""), "2": ("Oslo", "A town.")}


def test_an_index_is_not_opened_by_an_encoder_that_reads_none_of_some_passages(index: Path) -> None:
    encoder = open_encoder(ENCODER)
    encoder.modalities = TEXT
    with pytest.raises(ArtifactError, match=r"has passages of image alone, and .*MeanColour reads text of passages"):
        open_dense(index, encoder)


def test_trajectories_keep_the_name_and_digest_of_a_picture(index: Path, tmp_path: Path) -> None:
    hits = tuple(open_retriever(index).search(["red"], 2)[0])
    turn = Turn(Generation((1,), (0.0,), "stop"), "", Search("red"), hits)
    played = Trajectory(Question("q", "?", ("a",)), (Segment("prompt", (1,)),), (turn,), "answer", given=hits[:1])
    scored = ScoredTrajectory(played, 1.0)
    line = to_line(scored)
    assert len(line) < 2_000 and "content" not in line
    (tmp_path / "trajectories.jsonl").write_text(line)
    assert list(read_trajectories(tmp_path)) == [scored]
    close_trajectories(tmp_path)
    assert list(read_trajectories(tmp_path)) == [scored]


def test_trajectories_of_texts_are_what_they_were() -> None:
    passage = {"id": "1", "title": "T", "text": "x"}
    from sleuth.types import Hit

    played = Trajectory(
        Question("q", "?", ("a",)), (Segment("prompt", (1,)),), (), "answer", given=(Hit(Passage(**passage), 1.0, 1),)
    )
    assert json.loads(to_line(ScoredTrajectory(played, None)))["trajectory"]["given"][0]["passage"] == passage


def test_a_changed_store_is_told(index: Path) -> None:
    (hit,) = open_retriever(index).search(["red"], 1)[0]
    data = bytearray((index / IMAGES).read_bytes())
    data[20] ^= 255
    (index / IMAGES).write_bytes(bytes(data))
    with pytest.raises(DataError, match="has changed"):
        read_image(hit.passage.image)
    (index / IMAGES).unlink()
    with pytest.raises(DataError, match="cannot read"):
        read_image(hit.passage.image)


def test_training_rows_keep_which_picture_a_passage_has(tmp_path: Path) -> None:
    from retrieval.training.config import SourceSettings
    from retrieval.training.row import TrainingRow, passages_of
    from retrieval.training.rows import load_rows, write_rows

    one, two = (Passage(digest, "T", "", Image("a.png", digest * 64)) for digest in "01")
    rows = [TrainingRow("1", "who?", (one,), (two, Passage("3", "T", "x")))]
    write_rows(rows, tmp_path / "rows.jsonl")
    read = load_rows([SourceSettings(path=str(tmp_path / "rows.jsonl"))])
    assert read == rows and len(passages_of(read)) == 3
    assert '"image"' not in json.dumps(json.loads((tmp_path / "rows.jsonl").read_text())["negative_passages"][1])


def test_a_text_encoder_cannot_be_trained_on_pictures_alone() -> None:
    from retrieval.encoders.modalities import TEXT, check_passages

    with pytest.raises(ConfigError, match="enc reads text of passages, but passage 2 has only image"):
        check_passages([Passage("1", "", "x"), Passage("2", "", "", Image("a.png", "0" * 64))], TEXT, "enc")


def test_parts_of_a_hybrid_must_show_the_same_pictures() -> None:
    from retrieval.combine.hybrid import HybridRetriever
    from sleuth.types import Hit

    class Shelf:
        def __init__(self, image: Image | None) -> None:
            self.fingerprint, self.image = str(image), image

        def search(self, queries, k):
            return [[Hit(Passage("1", "T", "x", self.image), 1.0, 1)] for _ in queries]

    pictures = [Image("a.png", digest * 64) for digest in "01"]
    HybridRetriever([Shelf(None), Shelf(pictures[0])]).search(["q"], 1)
    with pytest.raises(ConfigError, match="different passages with the id"):
        HybridRetriever([Shelf(image) for image in pictures]).search(["q"], 1)
