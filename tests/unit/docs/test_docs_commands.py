"""The commands of the README and the pages are real: those in ``sh`` blocks run, every other one parses."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from cli import main as program

ROOT = Path(__file__).parents[3]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str]]:
    return FENCE.findall(page.read_text(encoding="utf-8"))


def commands() -> list[tuple[str, str]]:
    """(page, command) for every line of a block, or span of code, that calls the program with its options."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for _, block in blocks(page) for line in block.replace("\\\n", " ").splitlines()]
        lines += re.findall(r"`(sleuth [^`\n]+)`", FENCE.sub("", text))
        for line in lines:
            match = re.search(r"(?:^|\s|/)sleuth ([a-z].*)$", line)
            if match and not line.lstrip().startswith("#"):
                found.append((page.name, match.group(1)))
    return found


@pytest.mark.parametrize(("page", "command"), sorted(set(commands())))
def test_a_command_on_a_page_exists_with_its_options(page: str, command: str) -> None:
    words = [word for word in shlex.split(command, comments=True) if word not in ("…", "|")]
    group = typer.main.get_command(program.make_app())
    for word in words:
        if not hasattr(group, "commands"):
            break
        names = word.split("|")
        assert all(name in group.commands for name in names), f"{page}: sleuth {command}"
        group = group.commands[names[0]]
    known = {option for parameter in group.params for option in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert used <= known | {"--help", "--debug", "-h"}, f"{page}: sleuth {command}"


def test_the_pages_link_to_what_is_there() -> None:
    links = [
        (page, link) for page in PAGES for link in re.findall(r"\]\(([^)#]+)", FENCE.sub("", page.read_text("utf-8")))
    ]
    inside = [(page, link) for page, link in links if "://" not in link]
    assert len(inside) > 20
    assert not [f"{page.name}: {link}" for page, link in inside if not (page.parent / link).exists()]


@pytest.mark.e2e
@pytest.mark.parametrize("page", [p for p in PAGES if any(kind == "sh" for kind, _ in blocks(p))], ids=lambda p: p.name)
def test_a_block_to_be_run_runs(page: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    script = "set -e\n" + "\n".join(block for kind, block in blocks(page) if kind == "sh")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
