"""``sleuth synthesize`` as a user runs it, with a policy of this project; killed the hard way, the same rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings

HERE = Path(__file__).parent
WORDS = ("what", "is", "the", "title", "passage", "question", "that", "this", "answers", "of", "river", "town", "glass")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("synthesize")
    build_tiny_policy(made / "policy", WORDS, TinySettings(hidden_size=64, layers=2, heads=4, max_length=2048), seed=0)
    rows = [
        {"_id": f"p{i}", "title": f"town {i}", "text": "this town lies on a river and makes glass"} for i in range(9)
    ]
    (made / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "out": "unset",
        "writer": {"model": str(made / "policy"), "max_rows": 2},
        "recipe": {"kind": "queries"},
        "corpus": str(made / "corpus.jsonl"),
        "passages": {"min_words": 3},
        "filters": [{"kind": "length", "min_words": 1}, {"kind": "near_duplicates"}],
        "chunk": 4,
    }
    (made / "config.yaml").write_text(yaml.safe_dump(values))
    return made


def sleuth(folder: Path, out: str, *more: str, die_at: int | None = None) -> subprocess.CompletedProcess[str]:
    start = ["-m", "cli.main"] if die_at is None else [str(HERE / "kill_synthesis_at.py"), str(die_at)]
    words = [sys.executable, *start, "synthesize", str(folder / "config.yaml"), "--out", str(folder / out), *more]
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, env=environment, check=False, cwd=HERE.parents[1])


@pytest.mark.e2e
def test_a_run_killed_the_hard_way_ends_with_the_rows_of_an_unbroken_one(folder: Path) -> None:
    whole = sleuth(folder, "whole", "--json")
    assert whole.returncode == 0, whole.stderr
    record = json.loads(whole.stdout)
    assert record["written"] + sum(one["count"] for one in record["rejects"] if one["by"] == "writing") == 9
    assert f"{record['kept']} rows in " in whole.stderr
    assert sleuth(folder, "broken", die_at=6).returncode == -9
    refused = sleuth(folder, "broken")
    assert refused.returncode == 2 and "already holds a run" in refused.stderr
    resumed = sleuth(folder, "broken", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    for name in ("written.jsonl", "rejects.jsonl"):
        assert (folder / "broken" / name).read_bytes() == (folder / "whole" / name).read_bytes()


@pytest.mark.slow
def test_written_rows_alone_find_what_bm25_cannot(tmp_path: Path) -> None:
    from synthesis_world import pipeline

    found = pipeline(tmp_path, seed=0, steps=600)
    assert found["pool"] == 10_500 and found["bm25 R@5"] == 0.0
    assert found["written R@5"] >= 0.70
