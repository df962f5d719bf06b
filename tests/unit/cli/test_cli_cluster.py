"""``sleuth cluster`` and the pages about it; settings of a cluster; an index over shards."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from agent.cluster.config import MAY_DIFFER, ClusterSettings
from agent.cluster.identity import check_identity, code_identity
from agent.cluster.interface import ClusterError, Needs
from agent.cluster.local import LocalCluster
from agent.cluster.ray_cluster import write_token
from agent.cluster.sharding import ShardedSearch, shard_sizes
from cli.main import make_app
from retrieval.dense.search import FlatSearch
from retrieval.dense.vectors import StoredVectors
from sleuth.errors import ConfigError
from sleuth.settings import validate
from workflows.cluster import retriever_timeout
from workflows.retrievers import retriever_settings

ROOT = Path(__file__).parents[3]
CONFIG = str(ROOT / "configs" / "smoke.yaml")
RERANKED = "{kind: rerank, model: m, inner: {index: i}}"
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")


def sleuth(*words: str):
    return CliRunner().invoke(make_app(), list(words))


def test_what_is_printed_is_what_a_shell_can_run(tmp_path):
    done = sleuth("cluster", CONFIG, "--out", str(tmp_path / "run"), "--ip", "10.0.0.1", "--port", "7000")
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if not line.startswith("#")]
    ray = [shlex.split(line) for line in lines if line.startswith("ray ")]
    assert [words[1] for words in ray] == ["start", "start"]
    assert "--head" in ray[0] and "--port=7000" in ray[0] and "--address=10.0.0.1:7000" in ray[1]
    exported = dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))
    assert exported["RAY_AUTH_MODE"] == "token"
    assert exported["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / ".run.token")
    assert lines[-1].startswith("sleuth train ") and "cluster.address=10.0.0.1:7000" in lines[-1]
    assert not (tmp_path / "run").exists()


def test_what_is_printed_is_quoted_and_keeps_the_settings(tmp_path):
    out, setting = tmp_path / "a $run; 'x'", "policy={tiny: {layers: 2}}"
    done = sleuth("cluster", CONFIG, "--out", str(out), "--set", setting, "--ip", "10.0.0.1")
    assert done.exit_code == 0, done.output
    words = shlex.split(done.output.splitlines()[-1])
    assert words[:2] == ["sleuth", "train"]
    assert words[words.index("--out") + 1] == str(out)
    assert words[words.index("--set") + 1] == setting
    (test,) = [line for line in done.output.splitlines() if line.startswith("test -s ")]
    assert shlex.split(test)[2] == str(out.with_name(f".{out.name}.token"))


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="pastes into bash")
def test_the_printed_lines_make_the_secret_that_the_programs_own_would(tmp_path):
    """Pasted, in a folder that is not there yet and needs quotes; twice, it is left as it is."""
    out = tmp_path / "not there" / "a $run; 'x'"
    done = sleuth("cluster", CONFIG, "--out", str(out), "--ip", "10.0.0.1")
    pasted = "\n".join(line for line in done.output.splitlines() if not line.startswith(("ray ", "sleuth ")))
    secrets = []
    for _ in range(2):
        subprocess.run(["/bin/bash", "-euc", pasted], check=True, cwd=tmp_path)
        token = out.with_name(f".{out.name}.token")
        secrets.append(token.read_text(encoding="ascii"))
        assert token.stat().st_mode & 0o777 == 0o600
    assert secrets[0] == secrets[1]
    assert len(secrets[0]) == len(write_token(tmp_path / "own").read_text(encoding="ascii"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["not there", "own"]


@pytest.mark.parametrize(
    ("retriever", "given", "seconds"),
    [(None, None, 60), ("index", None, 60), (RERANKED, None, 900), (RERANKED, 5.0, 5)],
)
def test_retrievers_on_a_cluster_are_given_the_time_that_they_need(retriever, given, seconds):
    settings = None if retriever is None else retriever_settings(retriever)
    assert retriever_timeout(ClusterSettings(retriever_timeout_s=given), settings) == seconds


def test_joining_without_the_secret_is_one_line(tmp_path):
    done = sleuth("cluster", CONFIG, "--out", str(tmp_path / "run"), "--join", "10.0.0.1:7000")
    assert done.exit_code == 2
    assert "no secret" in done.output and "Traceback" not in done.output


def test_without_ray_one_line_names_the_extra(tmp_path, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else found(name, *more))
    done = sleuth("cluster", CONFIG, "--out", str(tmp_path / "run"))
    assert done.exit_code == 2
    assert "sleuth-rl[ray]" in done.output and "Traceback" not in done.output


def test_the_pages_examples_are_settings_and_yaml():
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.S):
        for line in block.splitlines() if block.startswith("cluster:") else []:
            validate(ClusterSettings, yaml.safe_load(line)["cluster"], "page")
    job = next(yaml.safe_load(b) for b in re.findall(r"```yaml\n(.*?)```", PAGE, re.S) if "RayJob" in b)
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"]


def test_threads_have_no_address_and_no_learners():
    with pytest.raises(ConfigError):
        validate(ClusterSettings, {"backend": "local", "learners": 2}, "x")


def test_what_decides_results_may_not_change_on_resume():
    assert "cluster.workers" in MAY_DIFFER
    assert not {"cluster.schedule", "cluster.max_staleness", "cluster.learners"} & set(MAY_DIFFER)


def test_other_code_is_refused():
    check_identity(code_identity())
    with pytest.raises(ClusterError, match="different code"):
        check_identity("0" * 16)


class Exact:
    """Exact search over some rows, in 64 bits."""

    def __init__(self, vectors):
        self.vectors = vectors

    def ranked(self, queries, k):
        scores = queries.astype(float) @ self.vectors.T.astype(float)
        rows = np.tile(np.arange(len(self.vectors)), (len(queries), 1))
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        return np.take_along_axis(scores, order, 1), order


@pytest.mark.parametrize(("rows", "shards", "k"), [(50, 3, 10), (7, 3, 5), (5, 8, 5), (40, 1, 3)])
def test_merged_shards_find_what_one_index_finds(rows, shards, k):
    rng = np.random.default_rng(0)
    vectors = rng.integers(-2, 3, (rows, 4)).astype(np.float32)  # small whole numbers: many equal scores
    queries = rng.integers(-2, 3, (6, 4)).astype(np.float32)
    cluster, sizes = LocalCluster(), shard_sizes(rows, shards)
    starts = np.cumsum([0, *sizes])
    actors = [
        cluster.spawn(f"shard {i}", lambda a=starts[i], b=starts[i + 1]: Exact(vectors[a:b]), Needs("shard"))
        for i in range(len(sizes))
    ]
    scores, found = ShardedSearch(actors, sizes, 4, 30.0).search(queries, k)
    cluster.close()
    expected_scores, expected = Exact(vectors).ranked(queries, k)
    assert np.array_equal(found, expected) and np.array_equal(scores, expected_scores)


def test_shards_rank_near_scores_as_one_index_does():
    rng = np.random.default_rng(1)
    vectors = (1 + rng.normal(size=(40, 8)) * 1e-8).astype(np.float32) + rng.integers(0, 3, (40, 8)) * np.float32(1e-7)
    queries = rng.normal(size=(4, 8)).astype(np.float32)
    whole = FlatSearch(StoredVectors(vectors))
    cluster, sizes = LocalCluster(), shard_sizes(40, 3)
    starts = np.cumsum([0, *sizes])
    actors = [
        cluster.spawn(f"shard {i}", lambda a=a, b=b: FlatSearch(StoredVectors(vectors[a:b])), Needs("shard"))
        for i, (a, b) in enumerate(pairwise(starts))
    ]
    scores, found = ShardedSearch(actors, sizes, 8, 30.0).search(queries, 5)
    cluster.close()
    expected_scores, expected = whole.search(queries, 5)
    assert np.array_equal(found, expected) and np.array_equal(scores, expected_scores)


def test_a_thread_that_hangs_does_not_keep_the_process_from_ending():
    script = (
        "import time\n"
        "from agent.cluster.interface import Needs\n"
        "from agent.cluster.local import LocalCluster\n"
        "class Hangs:\n"
        "    def sleep(self): time.sleep(600)\n"
        "cluster = LocalCluster()\n"
        "cluster.spawn('worker', Hangs, Needs('worker')).call('sleep')\n"
        "cluster.close()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
