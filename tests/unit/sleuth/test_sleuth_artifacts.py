"""Artefacts appear whole or not at all, and say what they are."""

import json
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sleuth import artifacts
from sleuth.artifacts import (
    MANIFEST,
    atomic_folder,
    atomic_write,
    check_destination,
    file_digest,
    read_manifest,
    text_digest,
    write_manifest,
)
from sleuth.errors import ArtifactError

DIE = """
import os, signal, sys
from sleuth.artifacts import atomic_folder
with atomic_folder(sys.argv[1], overwrite=True) as folder:
    (folder / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_folder_appears_when_the_block_ends_with_the_usual_permissions(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "index"
    with atomic_folder(final) as folder:
        (folder / "a.txt").write_text("a")
        assert not final.exists()
    assert names(tmp_path / "deep") == ["index"]
    assert (final / "a.txt").read_text() == "a"
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE(final.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_an_error_leaves_nothing_or_the_old_folder(tmp_path: Path) -> None:
    final = tmp_path / "index"
    with pytest.raises(ZeroDivisionError), atomic_folder(final) as folder:
        (folder / "a.txt").write_text("new")
        raise ZeroDivisionError
    assert names(tmp_path) == []
    with atomic_folder(final) as folder:
        (folder / "a.txt").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(final, overwrite=True) as folder:
        raise ZeroDivisionError
    assert (final / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["index"]


def test_an_existing_folder_is_kept_unless_overwrite(tmp_path: Path) -> None:
    final = tmp_path / "index"
    with atomic_folder(final) as folder:
        (folder / "old.txt").write_text("old")
    with pytest.raises(ArtifactError, match="exists already"), atomic_folder(final):
        pytest.fail("the block must not run")
    with atomic_folder(final, overwrite=True) as folder:
        (folder / "new.txt").write_text("new")
    assert names(final) == ["new.txt"]
    assert names(tmp_path) == ["index"]


def test_a_folder_made_meanwhile_by_another_is_not_swallowed(tmp_path: Path) -> None:
    final = tmp_path / "index"
    with pytest.raises(ArtifactError, match="exists already"), atomic_folder(final) as folder:
        (folder / "mine").write_text("x")
        final.mkdir()
        (final / "theirs").write_text("x")
    assert names(final) == ["theirs"]
    assert names(tmp_path) == ["index"]


def test_a_file_in_the_way_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "index").write_text("x")
    with pytest.raises(ArtifactError, match="is a file"), atomic_folder(tmp_path / "index", overwrite=True):
        pytest.fail("the block must not run")
    with pytest.raises(ArtifactError, match="is a file"), atomic_folder(tmp_path / "index" / "inner"):
        pytest.fail("the block must not run")
    assert (tmp_path / "index").read_text() == "x"


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with atomic_folder("index") as folder:
        (folder / "a").write_text("1")
    assert (tmp_path / "index" / "a").read_text() == "1"


def test_a_killed_build_leaves_the_old_folder_and_the_next_build_works(tmp_path: Path) -> None:
    final = tmp_path / "index"
    with atomic_folder(final) as folder:
        (folder / "old").write_text("x")
    done = subprocess.run([sys.executable, "-c", DIE, str(final)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert names(final) == ["old"]
    with atomic_folder(final, overwrite=True) as folder:
        (folder / "new").write_text("x")
    assert names(final) == ["new"]


def test_a_failed_swap_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = tmp_path / "index"
    with atomic_folder(final) as folder:
        (folder / "old").write_text("x")
    real = Path.rename

    def fail_for_the_new(self: Path, target: Path) -> Path:
        if Path(target) == final and not self.name.startswith(".index.old"):
            raise OSError("disk error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(OSError, match="disk error"), atomic_folder(final, overwrite=True) as folder:
        (folder / "new").write_text("x")
    assert names(final) == ["old"]


def test_only_an_artefact_of_its_kind_or_nothing_may_be_replaced(tmp_path: Path) -> None:
    final = tmp_path / "index"
    check_destination(final, overwrite=True, kinds=["bm25", "dense"])
    final.mkdir()
    check_destination(final, overwrite=True, kinds=["bm25", "dense"])
    (final / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"is not a Sleuth bm25 or dense: it has no manifest\.json"):
        check_destination(final, overwrite=True, kinds=["dense", "bm25"])
    for content in ('{"kind": "world"}', '{"manifest_version": 3}', "[]"):
        (final / MANIFEST).write_text(content)
        with pytest.raises(ArtifactError, match="is not a Sleuth bm25"):
            check_destination(final, overwrite=True, kinds=["bm25"])
    for content in ('{"kind": "bm25"}', '{"kind":'):
        (final / MANIFEST).write_text(content)
        check_destination(final, overwrite=True, kinds=["bm25"])
    with pytest.raises(ArtifactError, match="exists already"):
        check_destination(final, overwrite=False, kinds=["bm25"])


def test_a_folder_that_holds_an_input_or_the_current_folder_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "index" / "deep"
    inside.mkdir(parents=True)
    write_manifest(tmp_path / "index", "bm25", {})
    with pytest.raises(ArtifactError, match=r"corpus\.jsonl is inside it"):
        check_destination(tmp_path / "index", True, ["bm25"], [inside / "corpus.jsonl"])
    monkeypatch.chdir(inside)
    for given in (".", "..", "../deep", tmp_path / "index"):
        with pytest.raises(ArtifactError, match="is inside it"):
            check_destination(given, True, ["bm25"])


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.json"
    atomic_write(path, "é")
    atomic_write(path, "new")
    assert path.read_text(encoding="utf-8") == "new"
    assert names(path.parent) == ["metrics.json"]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.json"
    atomic_write(path, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(path, "\ud800")

    def full_disk(fd: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(artifacts.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["metrics.json"]


def test_a_manifest_is_read_back_with_versions(tmp_path: Path) -> None:
    write_manifest(tmp_path, "bm25", {"passages": 3, "corpus": "é"})
    manifest = read_manifest(tmp_path, "bm25", "sleuth index")
    assert (manifest["kind"], manifest["passages"], manifest["corpus"]) == ("bm25", 3, "é")
    assert {"sleuth-rl", "torch", "transformers", "trl"} <= manifest["versions"].keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not a finished bm25"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('"bm25"', "is damaged"),
        ("\udcff", "is damaged"),
        ("{}", "kind 'None', not 'bm25'"),
        (json.dumps({"kind": "dense"}), "kind 'dense', not 'bm25'"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_said_with_the_command(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_bytes(content.encode("utf-8", errors="surrogateescape"))
    with pytest.raises(ArtifactError, match=message) as caught:
        read_manifest(tmp_path, "bm25", "sleuth index CORPUS")
    assert "sleuth index CORPUS" in caught.value.hint


def test_a_folder_that_is_absent_or_a_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no bm25 at"):
        read_manifest(tmp_path / "none", "bm25", "sleuth index")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="file"):
        read_manifest(tmp_path / "file", "bm25", "sleuth index")


def test_a_manifest_cannot_be_given_another_kind_by_its_fields(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind"):
        write_manifest(tmp_path, "bm25", {"kind": "dense"})


def test_digests_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_digest(tmp_path / "f") == text_digest("abc") == known
