"""Pieces: any folder comes back from them as it was, and what is missing, damaged or mixed up is said."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.gpu.pieces import LIST, Load, check, cut, find, join, keep, missing
from sleuth.errors import ArtifactError

ROOT = Path(__file__).parents[3]
names = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=9
)
folders = st.dictionaries(names.filter(lambda name: name not in (".", "..")), st.binary(max_size=3000), min_size=1)


def written(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@settings(max_examples=25)
@given(folders, st.integers(64, 4000))
def test_a_folder_comes_back_as_it_was(files: dict[str, bytes], largest: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        source = written(Path(place, "source"), files)
        load = cut(source, Path(place, "cut"), {"python": "3.12"}, largest=largest)
        again = cut(source, Path(place, "again"), {}, largest=largest)
        assert again.digest == load.digest, "the bytes depend on the contents alone"
        assert all(piece.bytes <= largest for piece in load.pieces)
        read, found = find([Path(place, "cut")])
        assert read == load
        check(read, found)
        join(read, found, Path(place, "joined"))
        assert contents(Path(place, "joined")) == contents(source)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return written(tmp_path / "source", {"a/weights": bytes(range(256)) * 40, "b.txt": "é".encode() * 999})


@pytest.fixture
def carried(source: Path, tmp_path: Path) -> Path:
    cut(source, tmp_path / "carried", {}, largest=100)
    return tmp_path / "carried"


def test_pieces_may_come_one_by_one(source: Path, carried: Path, tmp_path: Path) -> None:
    one, rest, store = tmp_path / "one", tmp_path / "rest", tmp_path / "store"
    one.mkdir()
    shutil.copy(carried / LIST, one)
    shutil.copy(carried / "piece-001", one)
    load, found = find([one, store])
    assert missing(load, found) == [piece.name for piece in load.pieces[1:]]
    keep(load, found, store)
    shutil.copytree(carried, rest, ignore=shutil.ignore_patterns("piece-001", LIST))
    load, found = find([rest, store])
    check(load, found)
    assert not missing(load, found)
    join(load, found, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(source)


def test_damage_is_named(carried: Path) -> None:
    load, found = find([carried])
    whole = found["piece-002"].read_bytes()
    found["piece-002"].write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match="piece-002 is damaged: it has 99 bytes of 100"):
        check(load, found)
    found["piece-002"].write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(ArtifactError, match="piece-002 is damaged: its SHA-256 is"):
        check(load, found)


def test_lists_are_checked(source: Path, carried: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"there is no pieces.json \(.*source\)"):
        find([source])
    (source / "b.txt").write_bytes(b"other")
    cut(source, tmp_path / "other", {}, largest=100)
    with pytest.raises(ArtifactError, match="list different pieces"):
        find([carried, tmp_path / "other"])
    for text in ("", "{", "[]", '{"format": 1, "pieces": [{}]}'):
        (carried / LIST).write_text(text)
        with pytest.raises(ArtifactError, match=r"pieces.json is damaged \(carry it again"):
            find([carried])
    (carried / LIST).write_text(json.dumps({"format": 9}))
    with pytest.raises(ArtifactError, match="is of format 9, not 1"):
        Load.read(carried / LIST)
    with pytest.raises(ArtifactError, match="is empty"):
        cut(written(tmp_path / "empty", {}), tmp_path / "x", {})


def test_what_joins_pieces_needs_no_package() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import benchmarks.gpu.run"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
