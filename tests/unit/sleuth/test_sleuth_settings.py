"""Settings are strict, layered, and their errors say what to write instead."""

import math
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from sleuth.errors import ConfigError
from sleuth.settings import (
    Limit,
    Settings,
    Threshold,
    apply_override,
    load_settings,
    merge,
    read_layers,
    to_yaml,
    validate,
)


class GrpoSettings(Settings):
    steps: Annotated[int, Field(ge=1)] = 40
    beta: float = 0.1


class DenseSettings(Settings):
    kind: Literal["dense"] = "dense"
    encoder: str = "e5"
    pooling: str = "mean"


class Bm25Settings(Settings):
    kind: Literal["bm25"] = "bm25"
    index: Path = Path("index")
    k1: float = 0.9


Retriever = Annotated[DenseSettings | Bm25Settings, Field(discriminator="kind")]


class PartSettings(Settings):
    name: str
    weight: float = 1.0


class AllSettings(Settings):
    out: Path
    seed: int = 0
    grpo: GrpoSettings = GrpoSettings()
    tuned: GrpoSettings | None = None
    retriever: Retriever = Bm25Settings()
    parts: list[PartSettings] = Field(default_factory=list)
    by_name: dict[str, PartSettings] = Field(default_factory=dict)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def load(tmp_path: Path, text: str, *overrides: str) -> AllSettings:
    return load_settings(AllSettings, write(tmp_path, "c.yaml", text), overrides)


# Layers


def test_layers_lie_over_each_other_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    write(tmp_path, "base/root.yaml", "out: runs/root\nseed: 1\ngrpo: {steps: 10, beta: 0.5}\n")
    write(tmp_path, "base/mid.yaml", "extends: root.yaml\ngrpo: {steps: 20}\n")
    write(tmp_path, "extra.yaml", "seed: 3\n")
    top = write(tmp_path, "top.yaml", "extends: [base/mid.yaml, extra.yaml]\nout: runs/top\n")
    settings = load_settings(AllSettings, top)
    assert settings == AllSettings(out=Path("runs/top"), seed=3, grpo=GrpoSettings(steps=20, beta=0.5))


def test_a_shared_parent_is_no_circle_but_a_circle_is(tmp_path: Path) -> None:
    write(tmp_path, "root.yaml", "out: x\n")
    write(tmp_path, "a.yaml", "extends: root.yaml\n")
    write(tmp_path, "b.yaml", "extends: root.yaml\nseed: 5\n")
    assert read_layers(write(tmp_path, "top.yaml", "extends: [a.yaml, b.yaml]\n")) == {"out": "x", "seed": 5}
    write(tmp_path, "one.yaml", "extends: sub/two.yaml\n")
    write(tmp_path, "sub/two.yaml", "extends: ../one.yaml\n")
    with pytest.raises(ConfigError, match="extends itself"):
        read_layers(tmp_path / "one.yaml")


def test_a_layer_of_another_kind_replaces_and_one_without_kind_refines(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "out: x\nretriever: {kind: dense, encoder: bge, pooling: cls}\n")
    other = load(tmp_path, "extends: base.yaml\nretriever: {kind: bm25, k1: 1.2}\n")
    assert other.retriever == Bm25Settings(k1=1.2)
    refined = load(tmp_path, "extends: base.yaml\nretriever: {pooling: last}\n")
    assert refined.retriever == DenseSettings(encoder="bge", pooling="last")


def test_merge_leaves_its_arguments_alone() -> None:
    below = {"a": {"b": 1, "c": [1]}}
    above = {"a": {"b": 2}}
    assert merge(below, above) == {"a": {"b": 2, "c": [1]}}
    assert below == {"a": {"b": 1, "c": [1]}}


@pytest.mark.parametrize("text", ["extends: 3\nout: x\n", "extends: [1]\nout: x\n", "extends: {a: b}\nout: x\n"])
def test_extends_of_a_wrong_type_is_one_clear_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="extends"):
        load(tmp_path, text)


# Files


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, "hotpotqa.yaml", "out: x\n")
    with pytest.raises(ConfigError, match=r"no config file .*hotpot\.yaml \(did you mean 'hotpotqa\.yaml'\?\)"):
        load_settings(AllSettings, tmp_path / "hotpot.yaml")
    with pytest.raises(ConfigError, match=r"no config file [^(]*$"):
        load_settings(AllSettings, tmp_path / "nowhere" / "x.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        load_settings(AllSettings, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out: [1, 2\n", r"c\.yaml, line \d+: not valid YAML"),
        ("- a\n- b\n", "not a mapping"),
        ("just words\n", "not a mapping"),
        ("out: x\n1: 2\n", "1: Keys should be strings"),
        ("out: x\ngrpo:\n  beta: 1\n  beta: 2\n", r"line 4: .*duplicate key 'beta'"),
        ("out: x\nseed: 1\nseed: 2\n", "duplicate key 'seed'"),
        ("out: 2024-02-30\n", r"c\.yaml: not valid YAML: day is out of range"),
        ("out: " + "[" * 5000, "not valid YAML"),
    ],
)
def test_files_of_a_wrong_shape_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"out: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"cannot read .*c\.yaml"):
        load_settings(AllSettings, tmp_path / "c.yaml")


def test_an_empty_file_is_no_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="setting 'out' is missing"):
        load(tmp_path, "")


@pytest.mark.parametrize(("text", "value"), [("1e-5", 1e-5), ("5e-6", 5e-6), ("2E3", 2000.0), ("1.5e-3", 1.5e-3)])
def test_exponents_are_numbers(tmp_path: Path, text: str, value: float) -> None:
    assert load(tmp_path, f"out: x\ngrpo: {{beta: {text}}}\n").grpo.beta == value
    assert load(tmp_path, "out: x\n", f"grpo.beta={text}").grpo.beta == value


# Environment variables


def test_variables_are_filled_in_and_fall_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEUTH_TEST_DATA", "/data")
    monkeypatch.delenv("SLEUTH_TEST_NONE", raising=False)
    settings = load(
        tmp_path, "out: ${SLEUTH_TEST_DATA}/${SLEUTH_TEST_NONE:-runs}\nparts: [{name: '${SLEUTH_TEST_NONE:-}'}]\n"
    )
    assert settings.out == Path("/data/runs")
    assert settings.parts[0].name == ""
    assert load(tmp_path, "out: x\n", "out=${SLEUTH_TEST_DATA}/y").out == Path("/data/y")


def test_an_unset_variable_is_named_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLEUTH_TEST_NONE", raising=False)
    with pytest.raises(ConfigError, match=r"c\.yaml: retriever\.index uses \$\{SLEUTH_TEST_NONE\}.*export"):
        load(tmp_path, "out: x\nretriever: {kind: bm25, index: '${SLEUTH_TEST_NONE}/i'}\n")


def test_an_unset_variable_that_is_overridden_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLEUTH_TEST_NONE", raising=False)
    write(tmp_path, "base.yaml", "out: '${SLEUTH_TEST_NONE}/x'\n")
    assert load(tmp_path, "extends: base.yaml\nout: y\n").out == Path("y")
    assert load(tmp_path, "out: '${SLEUTH_TEST_NONE}/x'\n", "out=z").out == Path("z")


# Overrides


def test_overrides_reach_mappings_lists_and_sections_that_are_absent(tmp_path: Path) -> None:
    text = "out: x\nparts: [{name: em}, {name: f1}]\ntuned: null\n"
    settings = load(
        tmp_path, text, "grpo.steps=7", "parts.1.weight=0.5", "tuned.beta=0.25", "by_name.a={name: b, weight: 2}"
    )
    assert settings.grpo.steps == 7
    assert [part.weight for part in settings.parts] == [1.0, 0.5]
    assert settings.tuned == GrpoSettings(beta=0.25)
    assert settings.by_name == {"a": PartSettings(name="b", weight=2)}
    assert load(tmp_path, text, "parts=[{name: only}]").parts == [PartSettings(name="only")]
    assert load(tmp_path, text, "tuned=null").tuned is None
    assert load(tmp_path, text, "parts.0.name=a=b").parts[0].name == "a=b"


def test_a_section_of_another_kind_is_set_whole(tmp_path: Path) -> None:
    text = "out: x\nretriever: {kind: dense, encoder: bge}\n"
    assert load(tmp_path, text, "retriever={kind: bm25}", "retriever.k1=1.5").retriever == Bm25Settings(k1=1.5)


def test_anchors_and_merge_keys_work_and_an_override_changes_one_place_only(tmp_path: Path) -> None:
    text = "out: x\ngrpo: &g {steps: 3, beta: 0.5}\ntuned: *g\nby_name: {a: {<<: {name: n, weight: 2}, weight: 3}}\n"
    settings = load(tmp_path, text, "tuned.steps=9")
    assert (settings.grpo.steps, settings.tuned) == (3, GrpoSettings(steps=9, beta=0.5))
    assert settings.by_name["a"] == PartSettings(name="n", weight=3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("grpo.steps", "not key=value"),
        ("=3", "not key=value"),
        (".steps=3", "empty"),
        ("grpo..steps=3", "empty"),
        ("grpo.stpes=3", r"unknown setting 'grpo\.stpes' \(did you mean 'steps'\?\)"),
        ("gpro.steps=3", r"unknown setting 'gpro' \(did you mean 'grpo'\?\)"),
        ("grpo.steps=-1", r"grpo\.steps: .*greater than or equal to 1, got -1"),
        ("grpo.steps=many", r"grpo\.steps: .*got 'many'"),
        ("grpo.steps=[1", "cannot read"),
        ("out=2024-02-30", "cannot read '2024-02-30' as YAML"),
        ("seed.a=1", r"seed is the value 0"),
        ("parts.2.weight=1", "not an index into a list of 1"),
        ("parts.x.weight=1", "not an index into a list of 1"),
        ("parts.²=1", "not an index into a list of 1"),
        ("parts.0.name.x=1", r"parts\.0\.name is the value 'em', which has no keys"),
        ("parts.0.wieght=1", r"unknown setting 'parts\.0\.wieght' \(did you mean 'weight'\?\)"),
        ("by_name.a.wieght=1", r"unknown setting 'by_name\.a\.wieght' \(did you mean 'weight'\?\)|name"),
        ("tuned.stpes=1", r"unknown setting 'tuned\.stpes' \(did you mean 'steps'\?\)"),
        ("retriever.k=1", r"unknown setting 'retriever\.k' \(did you mean 'k1'\?\)"),
        ("retriever.kind=bm52", r"retriever.*(bm25|dense)"),
        ("grpo=3", "grpo"),
    ],
)
def test_wrong_overrides_are_one_clear_line(tmp_path: Path, override: str, message: str) -> None:
    text = "out: x\nseed: 0\nparts: [{name: em}]\nretriever: {kind: bm25}\n"
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, text, override)
    assert "\n" not in str(caught.value)


def test_unknown_keys_suggest_only_what_fits_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "out: x\nretriever: {kind: bm25, encoder: e5}\n")
    assert str(caught.value).endswith("unknown setting 'retriever.encoder' (choose one of: index, k1, kind)")


@pytest.mark.parametrize("member", ["runs/index", None])
def test_an_override_below_a_plain_member_of_a_list_is_one_clear_line(member: str | None) -> None:
    with pytest.raises(ConfigError, match=rf"parts\.0 is the value {member!r}, which has no keys"):
        apply_override({"parts": [member]}, "parts.0.k1=3")


def test_overrides_do_not_leak_into_later_loads(tmp_path: Path) -> None:
    values = read_layers(write(tmp_path, "c.yaml", "out: x\ngrpo: {steps: 3}\n"))
    apply_override(values, "grpo.steps=4")
    assert read_layers(tmp_path / "c.yaml")["grpo"]["steps"] == 3


# Round trip


def test_resolved_settings_can_be_read_back(tmp_path: Path) -> None:
    settings = load(
        tmp_path, "out: x\nretriever: {kind: dense}\nparts: [{name: 'yes'}, {name: 'é: #1'}]\n", "grpo.beta=1e-5"
    )
    assert load_settings(AllSettings, write(tmp_path, "resolved.yaml", to_yaml(settings))) == settings


def test_dollar_signs_survive_the_way_through_yaml(tmp_path: Path) -> None:
    settings = AllSettings(out=Path("x"), parts=[PartSettings(name="costs $5 {a}")])
    assert load_settings(AllSettings, write(tmp_path, "resolved.yaml", to_yaml(settings))) == settings


def test_settings_cannot_change() -> None:
    settings = validate(AllSettings, {"out": "x"}, "test")
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_a_number_is_finite(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"grpo\.beta: Input should be a finite number"):
        load(tmp_path, f"out: x\ngrpo: {{beta: {value}}}\n")


def test_only_a_bound_may_be_infinite_and_none_is_nan() -> None:
    class Bounds(Settings):
        limit: Limit = 1.0
        threshold: Threshold = 1.0

    bounds = validate(Bounds, {"limit": math.inf, "threshold": -math.inf}, "test")
    assert (bounds.limit, bounds.threshold) == (math.inf, -math.inf)
    for name in ("limit", "threshold"):
        with pytest.raises(ConfigError, match=rf"{name}: .*got nan"):
            validate(Bounds, {name: math.nan}, "test")
