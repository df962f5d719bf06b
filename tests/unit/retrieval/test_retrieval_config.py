from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retrieval.config import AnyRetriever, RetrieverSettings
from sleuth.errors import ConfigError
from sleuth.settings import Settings, to_yaml, validate


class Whole(Settings):
    retriever: AnyRetriever | None = None


def parse(value: Any) -> RetrieverSettings:
    found = validate(Whole, {"retriever": value}, "run.yaml").retriever
    assert found is not None
    return found


def test_a_retriever_is_a_path_or_a_mapping() -> None:
    assert parse("runs/index") == parse(Path("runs/index")) == parse({"index": "runs/index"})
    assert parse({"kind": "bm25", "index": "i", "k1": 1.2, "b": 0.75}).k1 == 1.2
    assert parse({"kind": "outside.module:Class", "options": {"url": "x"}}).open.__qualname__.startswith("Outside")


def test_settings_survive_yaml(tmp_path: Path) -> None:
    import yaml

    settings = parse({"index": "runs/index", "corpus": "c.jsonl", "timeout_s": 3})
    assert RetrieverSettings.model_validate(yaml.safe_load(to_yaml(settings))) == settings


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"index": "i", "treads": 3}, "did you mean 'threads'"),
        ({"index": "i", "k1": -1}, "k1: Input should be greater than or equal to 0, got -1"),
        ({"index": "i", "k1": float("nan")}, "k1"),
        ({"index": "i", "b": 1.5}, "b: Input should be less than or equal to 1, got 1.5"),
        ({"index": "i", "timeout_s": 0}, "timeout_s: Input should be greater than 0"),
        ({"index": "i", "retries": -1}, "retries"),
        ({"index": "i", "kind": "bm52"}, "unknown kind of retriever; did you mean 'bm25'"),
        ({"kind": "bm25"}, "index is missing"),
        ({}, "index is missing"),
        ({"parts": ["a", "b"]}, "kind is missing: these are settings of kind hybrid"),
        ({"index": 3}, "index: Input is not a valid path"),
        ({"index": ["i"]}, "index: Input is not a valid path"),
        ({"idex": "i"}, "unknown setting 'retriever.idex' (did you mean 'index'?)"),
        ({"kind": "dense", "index": "i", "encoder": {"backbone": "e", "poling": "cls"}}, "did you mean 'pooling'"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_kind_has_a_class_of_its_own_that_opens_it() -> None:
    classes = [RetrieverSettings.class_for({"kind": kind}) for kind in RetrieverSettings.KINDS]
    assert len(set(classes)) == len(RetrieverSettings.KINDS)
    for kind, own in zip(RetrieverSettings.KINDS, classes, strict=True):
        assert own.model_fields["kind"].default == kind
        assert own.open is not RetrieverSettings.open


def test_a_reranker_is_given_the_time_that_its_model_takes() -> None:
    reranked = {"kind": "rerank", "model": "m", "inner": {"index": "i"}}
    patience = [parse(value).patience_s for value in ("i", reranked)]
    assert patience[0] < patience[1]
    assert parse({**reranked, "timeout_s": 5}).patience_s == 5
