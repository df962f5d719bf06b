"""Downloads from a hub on loopback: sizes before, resumed where they stopped, refused where the hash differs."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import REVISION, Hub, fake_hub
from huggingface_hub import constants

from cli import main as program
from hub import reach
from hub.download import Planned, _place, fetch, plan, record_of, size_of
from hub.resources import RESOURCES, Product, all_products, product_of, products_named
from sleuth.errors import ConfigError, DataError
from sleuth.files import on_hub

FLASHRAG = "RUC-NLPIR/FlashRAG_datasets"
NQ = b'{"id": "test_0", "question": "who?", "golden_answers": ["x"]}\n'
CORPUS = b'{"id": "0", "contents": "\\"A title\\"\\nA text that says so."}\n' * 50
PARTS = [bytes([letter]) * 500 for letter in b"abc"]
E5 = "PeterJinGo/wiki-18-e5-index"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {
        FLASHRAG: {"nq/test.jsonl": NQ, "nq/dev.jsonl": NQ * 9, "README.md": b"cards"},
        "PeterJinGo/wiki-18-corpus": {"wiki-18.jsonl.gz": gzip.compress(CORPUS)},
        E5: {f"part_a{letter}": part for letter, part in zip("abc", PARTS, strict=True)},
        "PeterJinGo/wiki-18-bm25-index": {"bm25/segments_1": b"s" * 200, "bm25/_0.cfs": b"c" * 200},
    }
    with fake_hub(files) as served:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, served.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        reach._answers.cache_clear()
        yield served
    reach._answers.cache_clear()


def planned(root: Path, name: str) -> Planned:
    (one,) = plan([(product, root) for product in products_named(name)])
    return one


def silent(line: str) -> None:
    assert line


@pytest.mark.parametrize(
    ("name", "content"),
    [("nq/test.jsonl", NQ), ("nq/dev.jsonl", NQ * 9), ("wiki18", CORPUS), ("wiki18-e5", b"".join(PARTS))],
)
def test_a_file_is_made_whole_and_its_origin_kept(hub: Hub, tmp_path: Path, name: str, content: bytes) -> None:
    one = planned(tmp_path, name)
    assert one.size == sum(len(hub.files[one.product.repository][file.name]) for file in one.files)
    fetch(one, silent)
    assert one.destination.read_bytes() == content
    known = json.loads(record_of(one.destination).read_text())
    assert (known["repository"], known["revision"]) == (one.product.repository, REVISION)
    assert [path for path in one.destination.parent.iterdir() if path.name.endswith(".download")] == []
    assert plan([(one.product, tmp_path)]) == [], "what is there is not fetched again"


@pytest.mark.parametrize(("name", "file"), [("nq/test.jsonl", ""), ("wiki18", ""), ("wiki18-bm25", "segments_1")])
def test_what_was_cut_later_is_not_taken_for_whole(hub: Hub, tmp_path: Path, name: str, file: str) -> None:
    one = planned(tmp_path, name)
    fetch(one, silent)
    damaged = one.destination / file if file else one.destination
    size = damaged.stat().st_size
    os.truncate(damaged, size - 9)
    with pytest.raises(DataError, match=f"has {size - 9:,} bytes instead of {size:,} .delete it"):
        plan([(one.product, tmp_path)])


def test_a_folder_holds_the_files_without_the_hubs_folders(hub: Hub, tmp_path: Path) -> None:
    fetch(planned(tmp_path, "wiki18-bm25"), silent)
    assert {path.name for path in (tmp_path / "wiki18/bm25").iterdir()} == {"segments_1", "_0.cfs"}


@pytest.mark.parametrize("name", ["nq/test.jsonl", "part_ab"])
def test_another_hash_than_the_hubs_is_refused_and_deleted(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.lies = {name}
    one = planned(tmp_path, "wiki18-e5" if name == "part_ab" else name)
    with pytest.raises(DataError, match="its hash differs"):
        fetch(one, silent)
    assert not one.destination.exists()
    hub.lies = set()
    fetch(one, silent)
    assert one.destination.exists()


def test_an_interrupted_join_goes_on_with_the_next_part(hub: Hub, tmp_path: Path) -> None:
    one = planned(tmp_path, "wiki18-e5")

    def stop(line: str) -> None:
        if line.startswith("part_ac"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(one, stop)
    with (one.staging / "joined").open("ab") as file:
        file.write(b"a piece of an append that was killed")
    hub.sent.clear()
    again = planned(tmp_path, "wiki18-e5")
    assert again.size == 500
    fetch(again, silent)
    assert one.destination.read_bytes() == b"".join(PARTS)
    assert hub.sent == [("part_ac", 0)]


def test_a_broken_connection_goes_on_where_it_broke(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    hub.cut = {"part_aa": 200}
    fetch(planned(tmp_path, "wiki18-e5"), silent)
    assert hub.sent[:2] == [("part_aa", 0), ("part_aa", 200)]
    assert (tmp_path / "wiki18/e5_Flat.index").read_bytes() == b"".join(PARTS)


def test_a_later_process_goes_on_where_a_killed_one_stopped(hub: Hub, tmp_path: Path) -> None:
    one = planned(tmp_path, "nq/dev.jsonl")
    one.staging.mkdir(parents=True)
    _place(one, one.files[0]).write_bytes((NQ * 9)[:123])
    assert planned(tmp_path, "nq/dev.jsonl").size == len(NQ * 9) - 123
    fetch(one, silent)
    assert hub.sent == [("nq/dev.jsonl", 123)]
    assert one.destination.read_bytes() == NQ * 9


def test_another_process_at_the_same_file_is_refused(hub: Hub, tmp_path: Path) -> None:
    one = planned(tmp_path, "nq/test.jsonl")

    def second(_line: str) -> None:
        held = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "another process downloads" in held.stderr

    code = f"from hub.download import _locked\nfrom pathlib import Path\nwith _locked(Path({str(one.staging)!r})): pass"
    fetch(one, second)


def test_what_the_hub_does_not_have_is_one_line(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=f"{FLASHRAG} on the hub has no file popqa/test.jsonl"):
        planned(tmp_path, "popqa")
    with pytest.raises(DataError, match="does not list the files of BeIR/hotpotqa"):
        planned(tmp_path, "wiki-hotpotqa")
    with pytest.raises(ConfigError, match="did you mean 'wiki18-e5'"):
        products_named("wiki18-e4")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="cannot be reached"):
        planned(tmp_path, "nq/test.jsonl")


def test_a_path_is_known_by_its_end() -> None:
    found = product_of("indexes/wiki18/e5_Flat.index")
    assert found == (RESOURCES["wiki18-e5"].products[0], Path("indexes"))
    assert product_of("nq/test.jsonl") == (Product("nq/test.jsonl", FLASHRAG, ("nq/test.jsonl",)), Path())
    assert product_of("mine/test.jsonl") is None
    paths = [product.path for product in all_products()]
    assert not [path for path in paths if on_hub(f"data/{path}")], "a path that is not there yet is no data set's name"
    assert len(set(paths)) == len(paths)


def test_sizes_are_for_people() -> None:
    assert [size_of(size) for size in (7, 1500, 64.6e9, 3.2e12)] == ["7 B", "1.5 kB", "64.6 GB", "3200 GB"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        program.main(["download", *arguments])
    return int(end.value.code or 0)


def test_nothing_is_downloaded_without_a_yes(hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path)]
    assert run("nq/test.jsonl", "nq/dev.jsonl", *out) == 2
    said = capfd.readouterr().err
    assert "558 B" in said and "nobody can be asked whether to download 620 B (add --yes)" in said
    assert hub.sent == []
    assert run("nq/test.jsonl", *out, "--yes") == 0
    assert (tmp_path / "nq/test.jsonl").read_bytes() == NQ
    assert run("nq/test.jsonl", *out) == 0
    assert "here already" in capfd.readouterr().err


def test_a_config_and_a_suite_name_what_they_lack(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(
        "out: runs/r\npolicy: {model: m}\ndata: {dev: sets/nq/dev.jsonl, train: [{path: mine.jsonl}]}\n"
        "retriever: {kind: bm25, index: i, corpus: wikis/wiki18/wiki-18.jsonl}\n"
    )
    assert run("--for", "run.yaml", "--yes") == 0
    assert Path("sets/nq/dev.jsonl").read_bytes() == NQ * 9
    assert Path("wikis/wiki18/wiki-18.jsonl").read_bytes() == CORPUS
    assert run("--for", "run.yaml") == 0
    assert "nothing to download: the rest is here, or not on the hub" in capfd.readouterr().err
    Path("suite.yaml").write_text("sets: {a: {files: [data/nq/test.jsonl]}}\n")
    assert run("--suite", "suite.yaml", "--yes") == 0
    assert Path("data/nq/test.jsonl").read_bytes() == NQ
    assert run() == 0
    assert "wiki-hotpotqa" in capfd.readouterr().err
