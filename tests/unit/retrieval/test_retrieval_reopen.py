"""A dense index is opened as it was made, and a run's settings that were saved mean what they meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retrieval.config import RetrieverSettings
from retrieval.dense.retriever import build_dense
from retrieval.encoders.config import DenseChoice, preset
from retrieval.encoders.loading import load_encoder, new_encoder
from retrieval.encoders.retriever import EncoderRetriever
from retrieval.open import open_retriever
from sleuth.errors import ArtifactError, ConfigError
from sleuth.settings import load_settings, to_yaml


def opened(**values: Any) -> EncoderRetriever:
    retriever = open_retriever(RetrieverSettings.of(**values), cached=False, resilient=False)
    assert isinstance(retriever, EncoderRetriever)
    return retriever


@pytest.mark.parametrize(
    "change",
    [
        {"query_prompt": "query: ", "passage_prompt": "passage: "},
        {"query_max_tokens": 8, "passage_max_tokens": 12, "dimensions": 16},
        {"dtype": "bfloat16"},
    ],
)
def test_an_index_is_opened_with_the_settings_of_the_encoder_that_made_it(
    corpus: Path, encoder_folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    made_with = load_encoder(DenseChoice(backbone=str(encoder_folder), **change))
    build_dense(corpus, tmp_path / "i", made_with)
    found = opened(index=tmp_path / "i")
    assert found.encoder.settings == made_with.settings
    assert found.encoder.fingerprint == made_with.fingerprint


def test_an_index_of_a_new_encoder_knows_the_backbone_it_is_on(corpus: Path, backbone: Path, tmp_path: Path) -> None:
    for towers in ("shared", "separate"):
        small = {"query_max_tokens": 32, "passage_max_tokens": 48, "towers": towers}
        made_with = new_encoder(preset("dpr", str(backbone), **small))
        build_dense(corpus, tmp_path / towers, made_with)
        assert opened(index=tmp_path / towers).encoder.fingerprint == made_with.fingerprint


def test_an_encoder_changed_since_is_refused_with_the_difference(
    corpus: Path, backbone: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    load_encoder(encoder_folder).save(tmp_path / "e")
    build_dense(corpus, tmp_path / "i", load_encoder(tmp_path / "e"))
    lengths = {"query_max_tokens": 32, "passage_max_tokens": 48}
    new_encoder(preset("plain", str(backbone), pooling="cls", **lengths)).save(tmp_path / "e", overwrite=True)
    with pytest.raises(ArtifactError, match="its pooling is 'cls', the index has 'mean'"):
        opened(index=tmp_path / "i")


@pytest.mark.parametrize("made", [{"dtype": "int8"}, {"index_type": "hnsw"}])
def test_settings_that_were_saved_open_the_same_index(
    corpus: Path, encoder_folder: Path, tmp_path: Path, made: dict[str, Any]
) -> None:
    first = opened(index=tmp_path / "i", corpus=corpus, encoder=str(encoder_folder), **made)
    for number, asked in enumerate(({}, {"encoder": str(encoder_folder)}, {"corpus": corpus, **made})):
        settings = RetrieverSettings.of(kind="dense", index=tmp_path / "i", **asked)
        (tmp_path / f"{number}.yaml").write_text(to_yaml(settings))
        saved = load_settings(RetrieverSettings, tmp_path / f"{number}.yaml")
        found = opened(**saved.model_dump())
        assert found.encoder.settings.normalise is True
        assert found.fingerprint == first.fingerprint


def test_what_tunes_another_index_is_refused(corpus: Path, index: Path, encoder_folder: Path, tmp_path: Path) -> None:
    opened(index=tmp_path / "i", corpus=corpus, encoder=str(encoder_folder))
    for name in ("ef_search", "nprobe"):
        with pytest.raises(ConfigError, match=f"{name} does not apply to .*, an index of type flat"):
            opened(index=tmp_path / "i", **{name: 4})
    for other, change, kind in ((index, {"nprobe": 4}, "bm25"), (tmp_path / "i", {"k1": 1.0}, "dense")):
        with pytest.raises(ConfigError, match=f"{min(change)} does nothing for a retriever of kind {kind}"):
            opened(index=other, **change)


def test_saved_defaults_of_a_dense_index_do_not_hinder_other_kinds() -> None:
    for kind in ({"kind": "bm25", "index": "i"}, {"kind": "remote", "url": "http://x"}):
        RetrieverSettings.of(**kind, index_type="flat", dtype="float32")
    with pytest.raises(ConfigError, match="dtype does nothing for a retriever of kind bm25"):
        RetrieverSettings.of(kind="bm25", index=Path("i"), dtype="int8")


@pytest.mark.parametrize("device", ["nowhere", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line(encoder_folder: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=f"no device '{device}'"):
        load_encoder(DenseChoice(backbone=str(encoder_folder), device=device))


def test_queries_are_encoded_so_many_at_once_on_the_device_that_is_named(
    corpus: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    encoder = {"backbone": str(encoder_folder), "device": "cpu"}
    found = opened(index=tmp_path / "i", corpus=corpus, encoder=encoder, query_batch=2)
    sizes: list[int] = []
    whole = found.encoder.model.forward  # type: ignore[attr-defined]
    found.encoder.model.forward = lambda features, **how: (
        sizes.append(len(features["input_ids"]))
        or whole(  # type: ignore[attr-defined, func-returns-value]
            features, **how
        )
    )
    asked = [f"river {n}" for n in range(5)]
    in_twos = found.search(asked, 3)
    assert sizes == [2, 2, 1]
    whole_batch = opened(index=tmp_path / "i").search(asked, 3)
    assert [[h.passage for h in hits] for hits in in_twos] == [[h.passage for h in hits] for hits in whole_batch]
