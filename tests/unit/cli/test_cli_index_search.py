"""The commands index and search, called as typer calls them."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from datasets import Dataset, DatasetDict
from typer.testing import CliRunner

from cli.index import index
from cli.search import search
from retrieval.config import RetrieverSettings
from retrieval.open import open_retriever
from sleuth.errors import ArtifactError, ConfigError, DataError

ROWS = [{"_id": str(i), "title": f"Town {i}", "text": f"A [bold]town[/bold] named T{i}\nby a river."} for i in range(4)]


@pytest.fixture(scope="module")
def program() -> typer.Typer:
    app = typer.Typer()
    app.command()(index)
    app.command()(search)
    return app


@pytest.fixture(scope="module")
def made(program: typer.Typer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    lines = [*map(json.dumps, ROWS), "{broken"]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    arguments = ["index", str(folder), "--out", str(folder / "i"), "--skip-bad-rows"]
    done = CliRunner().invoke(program, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout == ""
    assert "4 passages in" in done.stderr
    assert "1 left out: broken JSON" in done.stderr
    assert "corpus.jsonl:5: broken JSON" in done.stderr
    return folder / "i"


def run(program: typer.Typer, *arguments: str, stdin: str = "") -> str:
    done = CliRunner().invoke(program, arguments, input=stdin, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_json_is_one_object_a_query_and_nothing_else(program: typer.Typer, made: Path) -> None:
    out = run(program, "search", str(made), "t2", "-", "-k", "1", "--json", stdin="town t3\n\n zzz \n")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["query"] for row in rows] == ["t2", "town t3", "zzz"]
    hit = rows[0]["hits"][0]
    assert hit == {"id": "2", "title": "Town 2", "text": ROWS[2]["text"], "score": hit["score"], "rank": 1}
    assert hit["score"] > 0
    assert rows[2]["hits"] == []


def test_people_see_passages_as_they_are(program: typer.Typer, made: Path) -> None:
    out = run(program, "search", str(made), "t2", "zzz")
    assert "Town 2" in out
    assert "[bold]town[/bold] named T2 by a river." in out
    assert "nothing found" in out


def test_mistakes_are_errors_of_ours(program: typer.Typer, made: Path) -> None:
    corpus = str(made.parent / "corpus.jsonl")
    with pytest.raises(DataError, match=r"corpus\.jsonl:5: broken JSON"):
        run(program, "index", corpus, "--out", str(made.parent / "j"))
    with pytest.raises(DataError, match="no corpus at"):
        run(program, "index", "absent.jsonl", "--out", str(made.parent / "j"))
    with pytest.raises(ArtifactError, match="exists already"):
        run(program, "index", corpus, "--out", str(made), "--skip-bad-rows")
    with pytest.raises(ConfigError, match="did you mean 'bm25'"):
        run(program, "index", corpus, "--out", str(made.parent / "j"), "--kind", "bm26")
    with pytest.raises(ConfigError, match=r"k is 0, it must be 1 or more to search .*"):
        run(program, "search", str(made), "town", "-k", "0")
    with pytest.raises(ConfigError, match="no query"):
        run(program, "search", str(made), "-", stdin="\n")
    assert not (made.parent / "j").exists()


def test_what_could_steer_a_terminal_is_spelt_out(program: typer.Typer, tmp_path: Path) -> None:
    row = {"_id": "1\x1b[2J", "title": "T\x1b]0;owned\x07", "text": "a town \x1b[31mred\x9b"}
    (tmp_path / "c.jsonl").write_text(json.dumps(row))
    run(program, "index", str(tmp_path / "c.jsonl"), "--out", str(tmp_path / "i"))
    out = run(program, "search", str(tmp_path / "i"), "town \x1b[0m")
    assert "\x1b" not in out and "\x9b" not in out
    assert "a town \\x1b[31mred" in out


@pytest.mark.e2e
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_queries_that_are_not_utf8_are_searched_all_the_same(made: Path, more: list[str]) -> None:
    words = ["search", str(made), b"t2 \xff", "-", "-k", "1", *more]
    environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"}
    command = [sys.executable, "-c", "from cli.main import main; main()", *words]
    done = subprocess.run(command, input=b"t3 \xff\n", capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"Town") >= 2
    if more:
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert [row["query"] for row in rows] == ["t2 \udcff", "t3 \ufffd"]


@pytest.mark.parametrize("out", ["data", ".", "data/..", "notes"])
def test_overwrite_replaces_indexes_only(
    program: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data/corpus.jsonl", "notes/mine.txt"):
        Path(name).parent.mkdir()
        Path(name).write_text(json.dumps(ROWS[0]))
    for more in ([], ["--kind", "dense", "--encoder", "absent/never/read"]):
        with pytest.raises(ArtifactError, match=r"is inside it|is not a Sleuth bm25 or dense"):
            run(program, "index", "data", "--out", out, "--overwrite", *more)
    assert Path("data/corpus.jsonl").exists() and Path("notes/mine.txt").exists()
    for _ in range(2):
        run(program, "index", "data", "--out", "made", "--overwrite")


@pytest.mark.parametrize(
    "option", ["--index-type=hnsw", "--dtype=float32", "--batch-size=8", "--workers=2", "--address=auto"]
)
def test_options_of_a_dense_index_are_refused_for_bm25(program: typer.Typer, made: Path, option: str) -> None:
    name = option.partition("=")[0]
    with pytest.raises(ConfigError, match=f"{name} does not apply to an index of kind bm25"):
        run(program, "index", str(made.parent), "--out", str(made.parent / "j"), option)


def test_no_threads_are_a_wrong_option(program: typer.Typer) -> None:
    done = CliRunner().invoke(program, ["index", "c.jsonl", "--out", "i", "--kind", "dense", "--threads", "0"])
    assert done.exit_code == 2
    assert "--threads" in done.stderr


def test_a_dense_index_from_the_command_line(program: typer.Typer, made: Path) -> None:
    from retrieval.encoders.config import ScratchSettings, preset
    from retrieval.encoders.loading import new_encoder
    from retrieval.encoders.scratch import make_backbone

    folder = made.parent
    shape = ScratchSettings(vocabulary=100, hidden_size=32, layers=1, heads=2, max_positions=64)
    make_backbone(folder / "bert", [row["text"] for row in ROWS], shape)
    new_encoder(preset("plain", str(folder / "bert"), passage_max_tokens=64)).save(folder / "encoder")
    corpus, out, encoder = str(folder / "corpus.jsonl"), str(folder / "dense"), str(folder / "encoder")
    dense = ["index", corpus, "--out", out, "--kind", "dense", "--skip-bad-rows", "--threads", "1"]
    run(program, *dense, "--encoder", encoder, "--dtype", "float16")
    rows = [json.loads(line) for line in run(program, "search", out, "Town 2 named T2", "", "--json").splitlines()]
    assert {hit["id"] for hit in rows[0]["hits"]} == {"0", "1", "2", "3"}
    assert rows[1]["hits"] == []
    for wrong, message in (
        (dense, "needs an encoder"),
        ([*dense, "--encoder", encoder, "--k1", "1"], "--k1 does not apply to an index of kind dense"),
        (["index", corpus, "--out", out, "--encoder", encoder], "--encoder does not apply to an index of kind bm25"),
        ([*dense, "--encoder", encoder, "--dtype", "int4", "--overwrite"], "dtype is 'int4'|int4"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(program, *wrong)


DPR = 'id\ttext\ttitle\n1\t"Aaron ( or ; ""Ahärôn"") is a\tprophet."\tAaron\n2\tBrill is a town.\t"The ""Brill"""\n'
PASSAGES = [("1", "Aaron", 'Aaron ( or ; "Ahärôn") is a\tprophet.'), ("2", 'The "Brill"', "Brill is a town.")]


def keyed(name: str) -> list[dict[str, str]]:
    return [{name: identifier, "title": title, "text": text} for identifier, title, text in PASSAGES]


def json_lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


def parquet(rows: list[dict[str, str]]) -> bytes:
    held = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), held)
    return held.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("psgs_w100.tsv", DPR.encode()),
        ("psgs_w100.tsv.gz", gzip.compress(DPR.encode())),
        ("psgs_w100.tsv.zst", zstd(DPR.encode())),
        ("ids.jsonl", json_lines(keyed("id"))),
        ("ids.jsonl.zst", zstd(json_lines(keyed("id")))),
        ("tevatron.jsonl.gz", gzip.compress(json_lines(keyed("docid")))),
        ("ids.parquet", parquet(keyed("id"))),
        ("docids.parquet", parquet(keyed("docid"))),
        ("beir.parquet", parquet(keyed("_id"))),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_corpora_as_the_field_has_them(program: typer.Typer, tmp_path: Path, name: str, content: bytes, inside: bool):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / name).write_bytes(content)
    corpus, out = tmp_path / "c" / ("" if inside else name), str(tmp_path / "i")
    run(program, "index", str(corpus), "--out", out)
    for query, (identifier, title, text) in zip(["prophet", "town"], PASSAGES, strict=True):
        (hit,) = json.loads(run(program, "search", out, query, "--json"))["hits"]
        assert (hit["id"], hit["title"], hit["text"]) == (identifier, title, text)
    settings = RetrieverSettings.of(kind="bm25", index=out, corpus=str(corpus))
    assert open_retriever(settings)
    (tmp_path / "c" / name).write_bytes(content + b" ")
    with pytest.raises(ArtifactError, match="other passages"):
        open_retriever(settings)


def test_shards_of_parquet_are_read_in_order(program: typer.Typer, tmp_path: Path):
    for i, row in enumerate(keyed("id")):
        (tmp_path / f"train-0000{i}-of-00002.parquet").write_bytes(parquet([row]))
    run(program, "index", str(tmp_path), "--out", str(tmp_path / "i"))
    assert json.loads(run(program, "search", str(tmp_path / "i"), "prophet", "--json"))["hits"]


def test_a_bad_row_of_a_table_is_named_by_its_line(program: typer.Typer, tmp_path: Path):
    path = tmp_path / "c.tsv"
    rows = ['1\t"two\nlines"\tT', "2\tno title", '3\t"quoted" then not\tT', "4\tcaf\udce9\tT", "5\tgood\tT", "6\t\t"]
    path.write_bytes(("id\ttext\ttitle\n" + "\n".join(rows)).encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"c\.tsv:4: the number of columns differs"):
        CliRunner().invoke(program, ["index", str(path), "--out", str(tmp_path / "i")], catch_exceptions=False)
    done = CliRunner().invoke(program, ["index", str(path), "--out", str(tmp_path / "i"), "--skip-bad-rows"])
    assert "2 passages in" in done.stderr
    for line, reason in ((5, "broken table"), (6, "text in another encoding than UTF-8"), (8, "empty text")):
        assert f"c.tsv:{line}: {reason}" in done.stderr
    path.write_text("0\tThe presence\n1\tof communication\n")
    with pytest.raises(DataError, match="the first line of a table names its columns"):
        CliRunner().invoke(program, ["index", str(path), "--out", str(tmp_path / "j")], catch_exceptions=False)


@pytest.mark.parametrize("name", ["owner/passages", "hf://owner/passages", "hf://owner/passages/default/train"])
def test_a_corpus_of_the_hub(program: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(tmp_path)
    train, out = Dataset.from_list(keyed("id")), str(tmp_path / "i")

    def load_dataset(path: str, config: str | None = None, split: str | None = None) -> Dataset | DatasetDict:
        assert path == "owner/passages"
        return train if split == "train" else DatasetDict(train=train)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    run(program, "index", name, "--out", out)
    assert json.loads(run(program, "search", out, "prophet", "--json"))["hits"][0]["id"] == "1"
    settings = RetrieverSettings.of(kind="bm25", index=out, corpus=name)
    assert settings.corpus == name
    assert open_retriever(settings)
    train = Dataset.from_list(keyed("id")[:1])
    with pytest.raises(ArtifactError, match=r"i was made from other passages than .*owner/passages"):
        open_retriever(settings)
