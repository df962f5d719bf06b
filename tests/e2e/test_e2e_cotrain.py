"""Co-training from question to result, killed in every stage, and refused what it must not do."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cotrain_job import cotrain_settings, run

from agent.cluster.config import ClusterSettings
from agent.cluster.worker import RolloutWorker
from sleuth.checkpoints import checkpoint_at
from sleuth.cotrain_layout import CotrainLayout
from sleuth.errors import ArtifactError
from sleuth.layout import RunLayout, read_record
from sleuth.protocols import Weights
from sleuth.types import Sampling

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
MOMENTS = [
    "mark:start-retriever",
    "mark:round-0-evaluate",
    "play:2",  # the second sample of the rollouts
    "mark:round-1-rollouts",
    "mark:round-1-rows",
    "learn:4",
    "mark:round-1-retriever",
    "mark:round-1-index",
    "mark:round-1-guard",
    "update:2",
    "mark:round-1-agent",
    "mark:round-1-evaluate",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> CotrainLayout:
    """A run of one round that was never stopped."""
    out = tmp_path_factory.mktemp("cotrain") / "whole"
    run(cotrain_settings(out))
    return CotrainLayout(out)


def digests(layout: CotrainLayout) -> dict[str, str]:
    """What the run made, by name."""
    made = layout.round(1)
    files = [made.rows, *made.rollouts.folder.rglob("predictions.json"), made.evaluation("test").predictions]
    files += [folder / "model.safetensors" for folder in (made.retriever.encoder, made.agent.grpo.policy)]
    files.append(trained_policy(layout) / "model.safetensors")
    files += sorted(made.index.glob("*.bin")) + sorted(made.index.glob("*.npy"))
    own = str(layout.out).encode()  # rows name the file of their question
    contents = {str(file.relative_to(layout.out)): file.read_bytes().replace(own, b"OUT") for file in files}
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def rounds(layout: CotrainLayout) -> list[dict]:
    return (read_record(layout.rounds) or {})["rounds"]


def test_a_round_goes_from_rollouts_to_a_swapped_retriever_and_a_trained_agent(whole: CotrainLayout):
    start, after = rounds(whole)
    assert start["round"] == 0
    assert (after["rollouts"]["questions"], after["rollouts"]["rollouts"]) == (10, 20)
    assert after["rows"]["rows"] > 0
    assert 0 < after["rows"]["precision"] <= 1
    assert after["retriever"]["trained"]
    assert after["agent"]["last_step"] == 2
    folders = RunLayout(whole.out).warmstart, trained_policy(whole)
    before, trained = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert before != trained
    assert {"em", "f1", "gold_recall"} <= after["after"]["agent"]["means"].keys()
    assert after["after"]["agent"]["to_before"]["n"] == 6
    rows = [json.loads(line) for line in whole.round(1).rows.read_text().splitlines()]
    assert {row["query_form"] for row in rows} == {"query"}
    swapped = after["guard"]["swapped"]
    assert (after["after"]["fingerprint"] == read_index(whole)) == swapped
    assert (after["after"]["fingerprint"] != start["after"]["fingerprint"]) == swapped


def trained_policy(layout: CotrainLayout) -> Path:
    """The last policy of the round, whichever step of it was published."""
    return checkpoint_at(layout.round(1).agent.grpo.checkpoints, 2)


def test_on_a_cluster_it_ends_with_the_same_bits(whole: CotrainLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    played, play = list[tuple[bool, float]](), RolloutWorker.play

    def counted(worker: RolloutWorker, weights: Weights | None, questions: Any, sampling: Sampling, seeds: Any) -> Any:
        played.extend([(weights is not None, sampling.temperature)] * len(questions))
        return play(worker, weights, questions, sampling, seeds)

    monkeypatch.setattr(RolloutWorker, "play", counted)
    settings = cotrain_settings(tmp_path / "apart")
    run(settings.model_copy(update={"cluster": ClusterSettings(backend="local", workers=1)}))
    apart = CotrainLayout(tmp_path / "apart")
    assert digests(apart) == digests(whole)
    assert "cluster/staleness" in apart.round(1).agent.metrics.read_text()  # it was played there
    rollouts, evaluations = played.count((False, 1.0)), played.count((False, 0.0))
    assert rollouts == 20 and evaluations >= 24  # dev and test, before and after the round


def read_index(layout: CotrainLayout) -> str:
    return json.loads((layout.out / "stages" / "round-1-index.json").read_text())["fingerprint"]


def test_a_finished_run_does_nothing_again_and_refuses_another_index(whole: CotrainLayout):
    settings = cotrain_settings(whole.out)
    before = digests(whole)
    assert run(settings, resume=True) == rounds(whole)
    assert digests(whole) == before
    record = whole.out / "stages" / "round-1-index.json"
    kept, evaluated = record.read_text(), whole.out / "stages" / "round-1-evaluate.json"
    figures = evaluated.read_text()
    swapped = whole.out / "stages" / "round-1-guard.json"
    guard = swapped.read_text()
    try:
        record.write_text(json.dumps({"fingerprint": "of another index"}))
        swapped.write_text(json.dumps({**json.loads(guard), "swapped": True}))
        evaluated.unlink()
        with pytest.raises(ArtifactError, match="is not the index that this run has made: its fingerprint differs"):
            run(settings, resume=True)
    finally:
        record.write_text(kept)
        swapped.write_text(guard)
        evaluated.write_text(figures)


def test_a_finished_run_can_be_given_more_rounds(whole: CotrainLayout, monkeypatch: pytest.MonkeyPatch):
    def stop(_run: object, number: int) -> dict:
        raise InterruptedError(f"round {number}")

    monkeypatch.setattr("workflows.cotrain.loop.roll_out", stop)
    with pytest.raises(InterruptedError, match="round 2"):
        run(cotrain_settings(whole.out, rounds=2), resume=True)
    assert run(cotrain_settings(whole.out), resume=True) == rounds(whole)


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_bits(whole: CotrainLayout, tmp_path: Path):
    job = [sys.executable, str(Path(__file__).with_name("cotrain_job.py")), str(tmp_path / "killed"), *MOMENTS]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "e2e")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(job, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    killed = CotrainLayout(tmp_path / "killed")
    assert digests(killed) == digests(whole)
    mine, theirs = rounds(killed)[1], rounds(whole)[1]
    for stage in ("rows", "guard", "agent"):
        assert {**mine[stage], "seconds": 0} == {**theirs[stage], "seconds": 0}
    assert mine["after"]["agent"]["means"] == theirs["after"]["agent"]["means"]
