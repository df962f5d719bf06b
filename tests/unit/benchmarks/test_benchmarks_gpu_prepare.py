"""A load: whatever the config names comes along, and is named where it will lie."""

from pathlib import Path

import pytest
import yaml

from benchmarks.gpu import prepare
from benchmarks.gpu.pieces import Load, find, join
from retrieval.open import open_retriever
from workflows.config import load_run_settings

QUIET = ["--no-wheels", "--threads", "1"]


def prepared(out: Path, world: Path, *options: str) -> int:
    return prepare.main(
        [str(out), "--config", str(world / "run.yaml"), "--encoder", str(world / "encoder"), *QUIET, *options]
    )


@pytest.fixture(scope="module")
def load(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("load") / "out"
    assert prepared(out, world) == 0
    return out


def test_a_load_can_be_run_from_where_it_is_unpacked(
    load: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, found = find([load / "pieces"])
    join(made, found, tmp_path / "carried")
    monkeypatch.setenv("SLEUTH_CARRIED", str(tmp_path / "carried"))
    monkeypatch.setenv("SLEUTH_GPU_RUN", str(tmp_path / "run"))
    settings = load_run_settings(tmp_path / "carried" / "config.yaml")
    assert settings.out == tmp_path / "run" and settings.environment.preset == "minimal"
    assert str(world) not in (tmp_path / "carried" / "config.yaml").read_text()
    for path in (settings.data.train[0].path, settings.data.dev, settings.demonstrations.sources[0].path):
        assert Path(path).is_relative_to(tmp_path / "carried") and Path(path).is_file()
    assert settings.data.train[0].path == settings.demonstrations.sources[0].path, "one file, carried once"
    retriever = open_retriever(settings.retriever)
    (hits,) = retriever.search(["on which river is Arden"], 3)
    assert len(hits) == 3 and "::w" in "".join(hit.passage.id for hit in hits) + "::w"
    assert (tmp_path / "carried" / "policy" / "tokenizer.json").is_file()
    assert (tmp_path / "carried" / "policy" / "model.safetensors").stat().st_size < (
        world / "policy" / "model.safetensors"
    ).stat().st_size, "in 16 bits"


def test_what_is_there_is_not_made_again(load: Path, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (load / "pieces").iterdir()}
    assert prepared(load, world) == 0
    assert {path: path.stat().st_mtime_ns for path in (load / "pieces").iterdir()} == before
    for other in (["--set", "seed=7"], ["--python", "3.11"]):
        assert prepared(load, world, *other) == 2
        assert "was begun for another config, encoder or Python" in capsys.readouterr().err


def test_few_passages_are_those_that_questions_are_about(world: Path, tmp_path: Path) -> None:
    assert prepared(tmp_path / "out", world, "--passages", "3") == 0
    kept = (tmp_path / "out" / "first-3.jsonl").read_text()
    assert all(title in kept for title in ("Estray", "Arden", "Fallow")) and kept.count("\n") == 3


def test_a_finished_index_brings_its_encoder(load: Path, world: Path, tmp_path: Path) -> None:
    given = ["--config", str(world / "run.yaml"), "--index", str(load / "load" / "index"), *QUIET, "--piece-mib", "1"]
    assert prepare.main([str(tmp_path / "out"), *given]) == 0
    assert (tmp_path / "out" / "load" / "encoder" / "modules.json").is_file()
    made = Load.read(tmp_path / "out" / "pieces" / "pieces.json")
    assert made.about["python"] is None and all(piece.bytes <= 2**20 for piece in made.pieces)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"retriever": {"kind": "bm25", "index": "x", "corpus": "/no/corpus.jsonl"}}, "retriever.corpus is /no/corpus"),
        ({"policy": {"model": "some/hub-name"}}, "policy.model 'some/hub-name' is not a folder here"),
        ({"data": {"train": [{"path": "/no/train.jsonl"}]}}, "/no/train.jsonl is named by"),
        ({"grpo": {"stepps": 3}}, "stepps"),
    ],
)
def test_what_cannot_be_carried_is_said_in_one_line(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], said: str
) -> None:
    values = yaml.safe_load((world / "run.yaml").read_text()) | change
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    given = ["--config", str(tmp_path / "run.yaml"), "--encoder", str(world / "encoder"), *QUIET]
    assert prepare.main([str(tmp_path / "out"), *given]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and said in error
