"""Models from wherever they lie, adapters, the cache folder, callbacks of trainers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub.adapters import adapter_base, adapter_rank, lora_config
from hub.cache import cache_folder
from hub.callbacks import CompletionMarker, LogToSink
from hub.config import EncoderLoraSettings, LoraSettings
from hub.models import ModelKind, convert_gguf, loading, resolve_model
from sleuth.checkpoints import is_complete
from sleuth.errors import ArtifactError, ConfigError, PolicyError

POLICY, ENCODER = ModelKind("policy", PolicyError), ModelKind("encoder", ArtifactError)


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"SLEUTH_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, "/own"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/sleuth"),
        ({"XDG_CACHE_HOME": ""}, "/home/ann/.cache/sleuth"),
        ({"XDG_CACHE_HOME": "here"}, "/home/ann/.cache/sleuth"),
        ({"SLEUTH_CACHE": ""}, "/home/ann/.cache/sleuth"),
        ({}, "/home/ann/.cache/sleuth"),
    ],
)
def test_the_cache_is_where_the_user_keeps_caches(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str
) -> None:
    for name in ("SLEUTH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (variables | {"HOME": "/home/ann"}).items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)


def test_a_name_is_a_path_that_must_be_there_or_the_hubs(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path), POLICY) == str(tmp_path)
    assert resolve_model("owner/model", ENCODER) == "owner/model"
    with pytest.raises(PolicyError, match=r"no policy at \./absent \(give a folder"):
        resolve_model("./absent", POLICY)
    with pytest.raises(ArtifactError, match=r"no GGUF file absent\.gguf"):
        resolve_model("absent.gguf", ENCODER)


def test_what_is_no_gguf_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF no more")
    with pytest.raises(ArtifactError, match=r"cannot read .* as GGUF") as caught:
        convert_gguf(tmp_path / "x.gguf", ENCODER, tmp_path / "cache")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        (".", ENCODER, r"cannot load an encoder from \.: it broke \(is the folder complete\?"),
        ("owner/model", POLICY, r"cannot load a policy from owner/model: it broke \(a hub name needs the network"),
        ("/a/b/c", POLICY, r"cannot load a policy from /a/b/c: it broke \(give a folder"),
    ],
)
def test_whatever_a_reader_raises_becomes_one_line(source: str, kind: ModelKind, message: str) -> None:
    with pytest.raises(kind.error, match=message) as caught, loading(source, kind):
        raise RuntimeError("\nit broke\nhere")
    assert "\n" not in str(caught.value)


def test_an_error_that_is_clear_already_stays() -> None:
    with pytest.raises(ConfigError, match="as it was"), loading("x", POLICY):
        raise ConfigError("as it was")


def test_an_adapter_names_its_base_and_rank(tmp_path: Path) -> None:
    assert adapter_base(str(tmp_path), POLICY) is None
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({"base_model_name_or_path": "owner/base", "r": 4}))
    assert (adapter_base(str(tmp_path), POLICY), adapter_rank(str(tmp_path), POLICY)) == ("owner/base", 4)
    path.write_text("{}")
    with pytest.raises(ArtifactError, match="names no base model"):
        adapter_base(str(tmp_path), ENCODER)
    for content in ("{", "[]"):
        path.write_text(content)
        with pytest.raises(PolicyError, match="is damaged"):
            adapter_base(str(tmp_path), POLICY)


def test_encoders_differ_from_policies_in_scale_and_dropout_alone() -> None:
    policy, encoder = LoraSettings().model_dump(), EncoderLoraSettings().model_dump()
    assert {name for name in policy if policy[name] != encoder[name]} == {"alpha", "dropout"}
    made = lora_config(EncoderLoraSettings(r=4), task_type="CAUSAL_LM")
    assert (made.r, made.lora_alpha, made.lora_dropout, made.bias, made.task_type) == (4, 64, 0.1, "none", "CAUSAL_LM")


class Sink:
    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []

    def scalars(self, step, values):
        self.lines.append((step, dict(values)))


def test_the_first_process_logs_numbers_and_marks_checkpoints(tmp_path: Path) -> None:
    args = SimpleNamespace(output_dir=str(tmp_path))
    (tmp_path / "checkpoint-3").mkdir()
    sink = Sink()
    for first in (False, True):
        assert not is_complete(tmp_path / "checkpoint-3")
        state = SimpleNamespace(is_world_process_zero=first, global_step=3)
        LogToSink(sink).on_log(args, state, None, logs={"loss": 1, "epoch": 0.5, "note": "x"})
        LogToSink(sink).on_log(args, state, None, logs=None)
        CompletionMarker().on_save(args, state, None)
    ((step, numbers),) = sink.lines
    assert (step, numbers["loss"], set(numbers)) == (3, 1.0, {"loss", "time/row"}) and numbers["time/row"] >= 0
    assert is_complete(tmp_path / "checkpoint-3")
