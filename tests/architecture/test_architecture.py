"""Who may import whom, what stays light, and how long a file may be. Each test lists all offenders at once."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from agent.cluster.identity import PACKAGES
from workflows.config import load_run_settings
from workflows.cotrain.config import load_cotrain_run
from workflows.retriever_training import load_retriever_run
from workflows.synthesis.config import load_synthesis

ROOT = Path(__file__).parents[2]
SIBLINGS = {"rewards", "envs", "retrieval", "agent"}
MAY_IMPORT = {
    "sleuth": set(),
    "hub": {"sleuth"},
    **{sibling: {"sleuth", "hub"} for sibling in SIBLINGS},
    "workflows": {"sleuth", "hub"} | SIBLINGS,
    "cli": {"sleuth", "hub", "workflows"} | SIBLINGS,
}
ABOVE_THE_SHARED_NOUNS = ("hub/", "retrieval/", "agent/", "workflows/", "cli/")
ONLY_IN = {
    "torch": ABOVE_THE_SHARED_NOUNS,
    "transformers": ABOVE_THE_SHARED_NOUNS,
    "typer": ("cli/",),
    "ray": ("agent/cluster/",),
    "vllm": ("agent/policies/vllm_",),
    "pyserini": ("retrieval/bm25.py", "retrieval/jvm.py"),
    "jnius": ("retrieval/bm25.py", "retrieval/jvm.py"),
    "fastapi": ("retrieval/service/server.py",),
    "mteb": ("retrieval/evaluation/mteb_models.py", "workflows/mteb_tasks.py"),
}
"""Library -> how the paths begin that may import it."""
HEAVY = {"torch", "transformers", "trl", "pyserini", "matplotlib", "datasets"}
LINES = 400


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {name_of(path): path.read_text("utf-8") for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py")}
TREES = {name: ast.parse(text) for name, text in SOURCES.items()}
MODULES = {module_of(ROOT / name): name for name in SOURCES}
LIGHT = [name for name in SOURCES if name.endswith("config.py") or name.startswith(("sleuth/", "cli/", "workflows/"))]


def imported(tree: ast.AST, modules: Iterable[str] = ()) -> Iterator[str]:
    """Every module that the code imports, also inside functions, under TYPE_CHECKING, and by importlib.

    ``from a import b`` is an import of ``a.b`` where that is one of ``modules``.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            below = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in modules else node.module or "" for name in below)
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


def defined(tree: ast.Module) -> set[str]:
    """The names that a module has."""
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def joined(tree: ast.AST) -> Iterator[str]:
    """The strings that ``/`` puts after a path."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
            yield str(node.right.value)


def packages(modules: Iterable[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of modules each of which reaches all others of its group, by imports of imports."""

    def reached_from(start: str) -> set[str]:
        seen, left = set(), [start]
        while left:
            new = imports.get(left.pop(), set()) - seen
            seen |= new
            left += new
        return seen

    reached = {module: reached_from(module) for module in imports}
    groups = {frozenset(n for n in reached[m] if m in reached.get(n, ())) for m in imports if m in reached[m]}
    return sorted(sorted(group) for group in groups)


def test_all_packages_are_looked_at() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} <= set(MAY_IMPORT)
    assert len(SOURCES) > 30


def test_every_list_of_packages_names_all() -> None:
    """What is built, what is typed, and what nodes of a cluster must have alike."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    built = {name.removesuffix("*") for name in project["setuptools"]["packages"]["find"]["include"]}
    assert built == set(project["mypy"]["packages"]) == set(PACKAGES) == set(MAY_IMPORT)


def test_benchmarks_and_examples_import_names_that_exist() -> None:
    """They run seldom, and types are not checked there."""
    files = [path for folder in ("benchmarks", "docs") for path in (ROOT / folder).rglob("*.py")]
    wrong = [
        f"{name_of(path)} imports {node.module}.{alias.name}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and packages([node.module]) <= set(MAY_IMPORT)
        for alias in node.names
        if f"{node.module}.{alias.name}" not in MODULES
        and (node.module not in MODULES or alias.name not in defined(TREES[MODULES[node.module]]))
    ]
    assert files and not wrong


def test_benchmarks_leave_the_program_alone() -> None:
    trees = {name_of(path): ast.parse(path.read_text("utf-8")) for path in (ROOT / "benchmarks").rglob("*.py")}
    assert trees and not [name for name, tree in trees.items() if "cli" in packages(imported(tree))]


def test_paths_of_a_run_are_joined_by_its_layout_alone() -> None:
    layouts = [TREES["sleuth/layout.py"], TREES["sleuth/cotrain_layout.py"]]
    names = {name for layout in layouts for name in joined(layout)}
    assert {"grpo", "evaluation", "metrics.json", "ray_train"} <= names
    trees = TREES | {name_of(path): ast.parse(path.read_text("utf-8")) for path in (ROOT / "benchmarks").glob("*.py")}
    found = {name: names & set(joined(tree)) for name, tree in trees.items() if tree not in layouts}
    assert not {name: what for name, what in found.items() if what}


def test_packages_import_only_what_they_may() -> None:
    found = {name: packages(imported(tree)) & set(MAY_IMPORT) for name, tree in TREES.items()}
    own = {name: name.partition("/")[0] for name in TREES}
    wrong = {name: found[name] - {own[name]} - MAY_IMPORT[own[name]] for name in TREES}
    assert not {name: what for name, what in wrong.items() if what}


def test_special_packages_are_imported_in_their_place_only() -> None:
    wrong = [
        f"{name} imports {library}"
        for name, tree in TREES.items()
        for library in packages(imported(tree)) & set(ONLY_IN)
        if not name.startswith(ONLY_IN[library])
    ]
    assert not wrong


def test_no_module_imports_itself_by_way_of_others() -> None:
    imports = {
        module: {other for other in imported(TREES[name], MODULES) if other in MODULES and other != module}
        for module, name in MODULES.items()
    }
    assert not circles(imports)


def test_files_are_short() -> None:
    lengths = {name: len(text.splitlines()) for name, text in SOURCES.items()}
    assert not {name: lines for name, lines in lengths.items() if lines > LINES}


def test_settings_shared_nouns_and_commands_are_light_to_import() -> None:
    found = {name: packages(at_import_time(TREES[name].body)) & HEAVY for name in LIGHT}
    assert not {name: what for name, what in found.items() if what}


def test_settings_shared_nouns_and_the_program_load_without_torch() -> None:
    """The walk above cannot see what an import imports; this can."""
    wanted = ("sleuth/", "cli/main.py")
    modules = [m for m, name in MODULES.items() if name.endswith("config.py") or name.startswith(wanted)]
    assert {"agent.config", "envs.config", "retrieval.config", "rewards.config", "workflows.config"} <= set(modules)
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
importlib.import_module("cli.main").make_app()
loaded = [name for name in {sorted(HEAVY)!r} if name in sys.modules]
sys.exit(f"loaded: {{loaded}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


LOADERS = {"retriever_": load_retriever_run, "cotrain_": load_cotrain_run, "synthesize_": load_synthesis}
"""What reads a config whose name begins so; all others are runs."""


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.y*ml")), ids=name_of)
def test_every_config_validates(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEUTH_DATA", "/data")
    monkeypatch.chdir(ROOT)
    load = next((load for start, load in LOADERS.items() if path.name.startswith(start)), load_run_settings)
    assert load(path, []).out


def test_there_are_configs() -> None:
    assert list((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("import a.b\nfrom c.d import e", {"a.b", "c.d"}),
        ("from known import part, name", {"known.part", "known"}),
        ("def f():\n    import torch", {"torch"}),
        ("import importlib\nimportlib.import_module('ray')", {"importlib", "ray"}),
    ],
)
def test_the_walk_sees_what_it_must(code: str, modules: set[str]) -> None:
    assert set(imported(ast.parse(code), {"known.part"})) == modules


def test_the_walk_of_import_time_leaves_functions_and_type_checking_out() -> None:
    code = (
        "import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\ndef f():\n    import d\ntry:\n    import e\n"
    )
    code += "except ImportError:\n    pass\nclass C:\n    import g\n"
    assert set(at_import_time(ast.parse(code).body)) == {"a", "e", "g"}


def test_circles_are_found_whole_and_apart() -> None:
    line = {"a": {"b"}, "b": {"c"}, "c": set()}
    assert circles(line) == []
    assert circles(line | {"c": {"a"}, "x": {"y", "a"}, "y": {"x"}}) == [["a", "b", "c"], ["x", "y"]]
