"""Which packages are carried: those that are not there, those that do not fit, and what depends on them."""

from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from benchmarks.gpu import wheels
from benchmarks.gpu.wheels import (
    LEFT_OUT,
    Wanted,
    closure,
    download,
    read_installed,
    stated,
    to_carry,
)
from sleuth.errors import ConfigError, DataError

ROOT = Path(__file__).parents[3]


def wanted(**packages: tuple[str, set[str]]) -> dict[str, Wanted]:
    return {name: Wanted(SpecifierSet(versions), needs) for name, (versions, needs) in packages.items()}


def test_a_package_stays_if_it_and_all_it_needs_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels.metadata, "version", lambda name: f"9.{name}")
    asked = wanted(a=(">=2", set()), b=("", {"a"}), c=("", {"b"}), d=("", set()), e=("<3", {"d"}))
    there = {"a": Version("1.0"), "b": Version("1"), "c": None, "d": Version("5"), "e": Version("2.9")}
    assert to_carry(asked, there) == {"a": "9.a", "b": "9.b", "c": "9.c"}
    assert to_carry(asked, there | {"a": Version("2.1")}) == {}
    assert to_carry(asked, {}).keys() == asked.keys()


def test_the_project_is_walked_for_the_other_python() -> None:
    names = closure(stated(ROOT), "3.12", {"torch"})
    assert {"torch", "trl", "transformers", "tokenizers", "pydantic-core"} <= names.keys()
    assert not names.keys() & {"sympy", *LEFT_OUT}, "torch brings its own, and nothing asks for Java"
    assert "tokenizers" in names["transformers"].needs and names["transformers"].versions
    old = Requirement("packaging; python_version < '3.12'")
    assert not closure([old], "3.12") and "packaging" in closure([old], "3.11")
    with pytest.raises(ConfigError, match="no-such-package is needed there, and is not installed here"):
        closure([Requirement("no_such.package")], "3.12")


def test_a_list_of_packages_is_read(tmp_path: Path) -> None:
    path = tmp_path / "freeze.txt"
    path.write_text("# made there\n-e git+x\nTorch==2.11.0+cu130\nruamel.yaml==1\nlocal @ file:///x\nsome\n")
    assert read_installed(path) == {
        "torch": Version("2.11.0"),
        "ruamel-yaml": Version("1"),
        "local": None,
        "some": None,
    } | {"torch": Version("2.11.0+cu130")}
    for line in ("torch = 2", "torch==two", "Package Version"):
        path.write_text(f"\n{line}\n")
        with pytest.raises(DataError, match=rf"line 2: '{line}' is no NAME==VERSION"):
            read_installed(path)


def test_wheels_that_came_are_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = metadata.version("packaging")
    (tmp_path / f"packaging-{here}-py3-none-any.whl").touch()
    (tmp_path / "packaging-1.0-py3-none-any.whl").touch()
    (tmp_path / "half.whl.part").touch()
    asked = []
    monkeypatch.setattr(wheels, "_pip_download", lambda packages, *_: asked.append(packages))
    found = download({"packaging": here, "six": "1"}, tmp_path, "3.12")
    assert asked == [{"six": "1"}] and [path.name for path in found] == [f"packaging-{here}-py3-none-any.whl"]
    assert len(list(tmp_path.iterdir())) == 1
