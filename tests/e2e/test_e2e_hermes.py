"""A tiny policy learns the Hermes form from demonstrations, is trained in it by GRPO and opened as a user would."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from agent.codec import HFCodec
from agent.policies.loading import load_codec
from cli import main as program
from sleuth.sinks import read_metrics
from sleuth.trajectories import read_trajectories
from sleuth.types import Answer, Search

pytestmark = pytest.mark.e2e
CONFIG = str(Path(__file__).parents[2] / "configs" / "smoke.yaml")
SMALLER = (
    *("world.train=60", "warmstart.steps=45", "warmstart.batch_size=10", "warmstart.warmup_steps=5"),
    *("grpo.steps=2", "grpo.eval_limit=2", "evaluation.limit=2", "threads=1", "environment.protocol=hermes"),
)


def sleuth(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main([str(word) for word in words])
    assert not ended.value.code


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "hermes"
    sets = [word for setting in SMALLER for word in ("--set", setting)]
    sleuth("train", CONFIG, "--out", out, *sets)
    return out


def test_demonstrations_end_their_messages_and_learn_nothing_of_what_is_put_in(run: Path) -> None:
    codec: HFCodec = load_codec(str(run / "start"))
    rows = [row.trajectory for row in read_trajectories(run / "demonstrations.jsonl")]
    assert all(row.stop == "answer" for row in rows)
    for row in rows[:20]:
        sampled = [s.token_ids for s in row.segments if s.source == "policy"]
        assert all(ids[-1] == codec.eos_token_id for ids in sampled[:-1]) and sampled[-1][-1] != codec.eos_token_id
        inserted = [codec.decode(s.token_ids).strip() for s in row.segments if s.source == "environment"]
        assert all(text.startswith("<tool_response>") and text.endswith("</tool_response>") for text in inserted)


def test_the_policy_has_learned_the_form_and_is_trained_in_it(run: Path) -> None:
    rows = [row.trajectory for row in read_trajectories(run / "grpo" / "trajectories")]
    actions = Counter(type(turn.action) for row in rows for turn in row.turns)
    assert len(rows) == 24 and actions[Search] > 0 and actions[Answer] > 0
    steps = [row for row in read_metrics(run / "metrics.jsonl") if "reward" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["check/logprob_gap"] < 1e-4 for row in steps), "sampler and trainer read the same tokens"
    assert all(row["kl"] >= 0 for row in steps)


def test_its_export_acts_as_trained(run: Path, tmp_path: Path) -> None:
    sleuth("export", run, "--out", tmp_path / "policy")
    assert json.loads((tmp_path / "policy" / "sleuth.json").read_text())["environment"]["protocol"] == "hermes"
    data = ("--data", run / "world" / "dev.jsonl", "--retriever", run / "index", "--limit", "4")
    sleuth("evaluate", tmp_path / "policy", *data, "--out", tmp_path / "evaluation")
    rows = [row.trajectory for row in read_trajectories(tmp_path / "evaluation" / "trajectories.jsonl")]
    assert any("<tool_response>" in turn.observation for row in rows for turn in row.turns)
