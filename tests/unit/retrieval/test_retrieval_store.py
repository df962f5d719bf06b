from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval import store as store_module
from retrieval.store import IDS, OFFSETS, PASSAGES, PassageStore, StoreWriter
from sleuth.errors import ArtifactError
from sleuth.types import Passage

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PASSAGE = st.builds(Passage, st.text(st.sampled_from("ab😀\n"), min_size=1, max_size=4), TEXT, TEXT)


def write(folder: Path, batches: Sequence[Sequence[Passage]]) -> list[bool]:
    with StoreWriter(folder) as writer:
        return [verdict for batch in batches for verdict in writer.add(batch)]


def first_of_each_id(passages: Sequence[Passage]) -> list[Passage]:
    kept: dict[str, Passage] = {}
    for passage in passages:
        kept.setdefault(passage.id, passage)
    return list(kept.values())


@pytest.mark.parametrize("hash_values", [1, 2, 5, 2**63])
@given(batches=st.lists(st.lists(PASSAGE, max_size=6), max_size=8))
def test_everything_comes_back_and_only_true_duplicates_are_refused(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[Passage]], hash_values: int
) -> None:
    """Also when different ids share a hash, and when the table of hashes is merged often."""

    def few_hashes(identifiers: Sequence[str]) -> np.ndarray:
        numbers = [int.from_bytes(hashlib.sha1(i.encode()).digest()[:7]) % hash_values for i in identifiers]
        return np.array(numbers, np.uint64)

    folder = tmp_path_factory.mktemp("store")
    everything = [passage for batch in batches for passage in batch]
    expected = first_of_each_id(everything)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "id_hashes", few_hashes)
        patch.setattr(store_module, "_RUN", 2)
        assert sum(write(folder, batches)) == len(expected)
        if not expected:
            return
        store = PassageStore(folder)
        assert list(store) == expected
        assert store.get_many([p.id for p in expected]) == expected
        assert store.get("not there") is None


def test_a_duplicate_in_the_same_batch_and_in_a_later_one(tmp_path: Path) -> None:
    one, two = Passage("1", "a", "b"), Passage("2", "a", "b")
    assert write(tmp_path, [[one, one], [two, Passage("1", "other", "text")], [two]]) == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert list(PassageStore(tmp_path)) == [one, two]


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    passages = [Passage(str(i), "t", "x") for i in range(5)]
    digests = []
    for name, batches in {"a": [passages], "b": [[p] for p in passages], "c": [passages[:-1]]}.items():
        with StoreWriter(tmp_path / name) as writer:
            for batch in batches:
                writer.add(batch)
            digests.append(writer.digest)
    assert digests[0] == digests[1] != digests[2]


def test_many_threads_read_one_store(tmp_path: Path) -> None:
    passages = [Passage(f"p{i}", f"title {i}", "text " * (i % 50)) for i in range(3000)]
    write(tmp_path, [passages[i : i + 700] for i in range(0, 3000, 700)])
    store = PassageStore(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: store.get_many([f"p{i}", "none", f"p{2999 - i}"]), range(0, 3000, 7)))
    assert found == [[passages[i], None, passages[2999 - i]] for i in range(0, 3000, 7)]


def test_there_is_no_passage_before_the_first_or_after_the_last(tmp_path: Path) -> None:
    write(tmp_path, [[Passage("1", "", "a")]])
    store = PassageStore(tmp_path)
    assert store.get("\ud83d") is None
    for ordinal in (-1, 1):
        with pytest.raises(IndexError):
            store[ordinal]


@pytest.mark.parametrize("name", [PASSAGES, OFFSETS, IDS])
def test_a_store_that_is_not_whole_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, [[Passage(str(i), "", "a") for i in range(10)]])
    whole = (tmp_path / name).read_bytes()
    for damaged in (whole[:-8], b""):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ArtifactError, match="build the index anew"):
            PassageStore(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        PassageStore(tmp_path)
