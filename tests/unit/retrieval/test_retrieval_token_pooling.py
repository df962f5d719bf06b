"""Indexes that keep fewer vectors a passage: groups and means are those of the method, also in coded indexes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling
from torch.nn.functional import normalize

from retrieval.config import RetrieverSettings
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.family import Encoded
from retrieval.encoders.loading import load_encoder
from retrieval.multivector.pooling import Pooling
from retrieval.multivector.retriever import build_multivector, open_multivector
from retrieval.multivector.tokens import open_tokens
from retrieval.passages import passage_text
from retrieval.store import PassageStore
from sleuth.errors import ArtifactError, ConfigError

TYPES: dict[str, dict[str, Any]] = {
    "flat": {},
    "residual": {"index_type": "residual", "centroids": 4},
}


def test_groups_are_wards_on_cosine_distance_and_their_means_stand_for_them() -> None:
    """The method as it is written, with scipy."""
    torch.manual_seed(0)
    values, mask = normalize(torch.randn(3, 20, 8), dim=-1), torch.ones(3, 20, dtype=torch.bool)
    mask[1, 13:] = False
    mask[2, ::2] = False  # ten vectors, not side by side
    pooled = Pooling(3, unit=True)(Encoded(values, mask))
    assert pooled.mask is not None and pooled.mask.sum(1).tolist() == [6, 4, 3]
    for row in range(3):
        own = values[row][mask[row]].double().numpy()
        groups = fcluster(linkage(pdist(own, "cosine"), "ward"), len(own) // 3, "maxclust")
        means = np.array([own[groups == group].mean(0) for group in np.unique(groups)])
        expected = means / np.linalg.norm(means, axis=1, keepdims=True)
        found = pooled.values[row][pooled.mask[row]].numpy()
        np.testing.assert_allclose(sorted(found.tolist()), sorted(expected.tolist()), atol=1e-5)


def test_one_vector_is_left_at_least_and_none_stays_none() -> None:
    values = normalize(torch.randn(2, 4, 8), dim=-1)
    mask = torch.tensor([[True, True, True, False], [False] * 4])
    pooled = Pooling(100, unit=False)(Encoded(values, mask))
    assert pooled.mask is not None and pooled.mask.tolist() == [[True], [False]]
    torch.testing.assert_close(pooled.values[0, 0], values[0, :3].mean(0))
    same = Encoded(values, mask)
    assert Pooling(1, unit=True)(same) is same


@pytest.fixture(scope="module")
def encoder(colbert_folder: Path) -> Encoder:
    return load_encoder(colbert_folder)


def test_an_index_has_what_the_library_makes(
    corpus: Path, colbert_folder: Path, encoder: Encoder, tmp_path: Path
) -> None:
    build_multivector(corpus, tmp_path / "i", encoder, pool_factor=2, shard=4)
    tokens, passages = open_tokens(tmp_path / "i"), list(PassageStore(tmp_path / "i"))
    plain = MultiVectorEncoder(str(colbert_folder)).encode_document(
        [passage_text(passage) for passage in passages],
        token_pooling=HierarchicalTokenPooling(2, num_protected_tokens=0),
    )
    for row, vectors in enumerate(plain):
        own = tokens.read(slice(tokens.bounds[row], tokens.bounds[row + 1]))
        assert len(own) == len(vectors)
        np.testing.assert_allclose(sorted(own.tolist()), sorted(np.asarray(vectors).tolist()), atol=1e-4)


@pytest.mark.parametrize("kind", TYPES)
def test_an_index_keeps_fewer_and_is_another_index(kind: str, corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    for factor in (None, 2.0):
        build_multivector(corpus, tmp_path / str(factor), encoder, pool_factor=factor, **TYPES[kind])
    whole, half = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("None", "2.0"))
    assert 0.4 < half["tokens"] / whole["tokens"] <= 0.5 and (whole["pool_factor"], half["pool_factor"]) == (None, 2.0)
    one, other = (open_multivector(tmp_path / name, encoder) for name in ("None", "2.0"))
    assert one.fingerprint != other.fingerprint
    assert len(other.search(["Arden"], 3)[0]) == 3


def test_a_killed_build_of_a_pooled_index_goes_on(corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    def kill(count: int) -> None:
        if count > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_multivector(corpus, tmp_path / "i", encoder, shard=4, pool_factor=2, on_progress=kill)
    seen: list[int] = []
    build_multivector(corpus, tmp_path / "i", encoder, shard=4, pool_factor=2, on_progress=seen.append)
    build_multivector(corpus, tmp_path / "j", encoder, shard=4, pool_factor=2)
    assert min(seen) > 4
    for path in (tmp_path / "j").iterdir():
        assert (tmp_path / "i" / path.name).read_bytes() == path.read_bytes()


def test_what_does_not_fit_is_one_clear_line(
    corpus: Path, colbert_folder: Path, encoder: Encoder, tmp_path: Path
) -> None:
    for factor in (0.5, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"pool_factor is .*, it must be 1 or more"):
            build_multivector(corpus, tmp_path / "i", encoder, pool_factor=factor)
    build_multivector(corpus, tmp_path / "i", encoder, pool_factor=2)
    asked = {"kind": "multivector", "index": str(tmp_path / "i"), "encoder": str(colbert_folder), "pool_factor": 3}
    with pytest.raises(ArtifactError, match=r"has the pool_factor 2.*, not 3.* --set pool_factor=3"):
        RetrieverSettings.model_validate(asked).open(lambda _title: None)  # type: ignore[arg-type,return-value]
