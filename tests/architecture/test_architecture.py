"""Who may import whom, what stays light, and how long a file may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workflows.config import load_run_settings
from workflows.retriever_training import load_retriever_run

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "sleuth": set(),
    "hub": {"sleuth"},
    "rewards": {"sleuth"},
    "envs": {"sleuth"},
    "retrieval": {"sleuth", "hub"},
    "agent": {"sleuth", "hub"},
    "workflows": {"sleuth", "hub", "rewards", "envs", "retrieval", "agent"},
    "cli": {"sleuth", "hub", "rewards", "envs", "retrieval", "agent", "workflows"},
}
ONLY_IN = {
    "ray": {"agent/cluster/*.py"},
    "vllm": {"agent/policies/vllm_engine.py", "agent/policies/vllm_background.py"},
    "pyserini": {"retrieval/bm25.py", "retrieval/jvm.py"},
    "jnius": {"retrieval/bm25.py", "retrieval/jvm.py"},
    "fastapi": {"retrieval/service/server.py", "agent/serve.py"},
}
HEAVY = ("torch", "transformers", "trl", "pyserini", "matplotlib", "datasets")
SOURCES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
LINES = 400


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that the code imports, also inside functions and under TYPE_CHECKING, and by importlib."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module" and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                yield str(argument.value)


def at_import_time(body: list[ast.stmt]) -> Iterator[str]:
    """What is imported when the module is: not in functions, not under TYPE_CHECKING."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imported(node)
        elif isinstance(node, ast.ClassDef | ast.Try):
            yield from at_import_time(node.body)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            yield from at_import_time(node.body + node.orelse)


def test_all_packages_are_looked_at() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == set(MAY_IMPORT)
    assert len(SOURCES) > 30


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_packages_import_only_what_they_may(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    found = {module.partition(".")[0] for module in imported(ast.parse(path.read_text(encoding="utf-8")))}
    assert (found & set(MAY_IMPORT)) - {package} <= MAY_IMPORT[package]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_special_packages_are_imported_in_their_place_only(path: Path) -> None:
    relative = path.relative_to(ROOT)
    for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
        places = ONLY_IN.get(module.partition(".")[0])
        assert places is None or any(relative.match(place) for place in places), f"imports {module}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES


@pytest.mark.parametrize(
    "path",
    [p for p in SOURCES if p.name.endswith("config.py") or name_of(p).startswith(("sleuth/", "cli/"))],
    ids=name_of,
)
def test_settings_shared_nouns_and_commands_are_light_to_import(path: Path) -> None:
    found = {module.partition(".")[0] for module in at_import_time(ast.parse(path.read_text(encoding="utf-8")).body)}
    assert not found & set(HEAVY)


def test_settings_shared_nouns_and_the_program_load_without_torch() -> None:
    """The walk above cannot see what an import imports; this can."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in SOURCES
        if path.name.endswith("config.py") or name_of(path).startswith("sleuth/") or name_of(path) == "cli/main.py"
    ]
    assert {"agent.config", "envs.config", "retrieval.config", "rewards.config", "workflows.config"} <= set(modules)
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
importlib.import_module("cli.main").make_app()
loaded = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"loaded: {{loaded}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.y*ml")), ids=name_of)
def test_every_config_validates(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEUTH_DATA", "/data")
    monkeypatch.chdir(ROOT)
    settings = load_retriever_run(path, []) if path.name.startswith("retriever_") else load_run_settings(path)
    assert settings.out


def test_there_are_configs() -> None:
    assert list((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("import a.b\nfrom c.d import e", {"a.b", "c.d"}),
        ("def f():\n    import torch", {"torch"}),
        ("import importlib\nimportlib.import_module('ray')", {"importlib", "ray"}),
    ],
)
def test_the_walk_sees_what_it_must(code: str, modules: set[str]) -> None:
    assert set(imported(ast.parse(code))) == modules


def test_the_walk_of_import_time_leaves_functions_and_type_checking_out() -> None:
    code = (
        "import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\ndef f():\n    import d\ntry:\n    import e\n"
    )
    code += "except ImportError:\n    pass\nclass C:\n    import g\n"
    assert set(at_import_time(ast.parse(code).body)) == {"a", "e", "g"}
