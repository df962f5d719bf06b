"""The stage before GRPO: it stops a run or lets it through, and samples no more than once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import byte_level

from agent.codec import HFCodec
from agent.policies.scripted import ScriptedPolicy
from sleuth.errors import TrainingError
from sleuth.layout import read_record
from sleuth.runs import RunFolder
from sleuth.settings import validate
from sleuth.types import Hit, Passage
from workflows import gate
from workflows.config import RunSettings
from workflows.context import StageContext
from workflows.stages import not_begun

SEARCH, RIGHT, WRONG = "<search> it </search>", "<answer> Oslo </answer>", "<answer> Rome </answer>"
LAZY = [[SEARCH, RIGHT], [SEARCH, WRONG]]
GOOD = [[SEARCH, SEARCH, RIGHT], [SEARCH, WRONG]]


class Shelf:
    fingerprint = "shelf"

    def search(self, queries: list[str], k: int) -> list[list[Hit]]:
        return [[Hit(Passage("p", "Norway", "A country."), 1.0, 1)] for _ in queries]


def settings(tmp_path: Path, **chosen: Any) -> RunSettings:
    questions = tmp_path / "q.jsonl"
    rows = [{"id": str(n), "question": f"who {n}?", "golden_answers": ["Oslo"]} for n in range(5)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "out": str(tmp_path / "run"),
        "policy": {"model": str(tmp_path)},
        "data": {"train": [{"path": str(questions)}], "dev": str(questions)},
        "evaluation": {"batch_size": 1},
        "environment": {"preset": "minimal", "searches": 2, "turns": 3},
        "grpo": {"gate": {"questions": 3, "group_size": 2, **chosen}},
    }
    return validate(RunSettings, values, "run.yaml")


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Counter[str]]:
    """``use(scripts)``: the samples of every question take the scripts in turn. Returns how often each was sampled."""
    monkeypatch.setattr("workflows.context.make_retriever", lambda _settings: Shelf())
    codec = HFCodec(byte_level())

    def choose(scripts: list[list[str]], interrupt_at: int = 0) -> Counter[str]:
        begun: Counter[str] = Counter()

        def said(question: str, turn: int) -> str:
            begun[question] += turn == 0
            if begun.total() == interrupt_at:
                raise KeyboardInterrupt
            return scripts[(begun[question] - 1) % len(scripts)][turn]

        monkeypatch.setattr(gate, "make_policy", lambda _settings: (ScriptedPolicy(codec, said), codec))
        return begun

    return choose


def stage(given: RunSettings) -> StageContext:
    given.out.mkdir(exist_ok=True)
    return StageContext(given, RunFolder(given.out), resume=True)


def test_without_a_gate_nothing_is_sampled(tmp_path: Path) -> None:
    given = settings(tmp_path)
    assert given.grpo is not None
    bare = given.model_copy(update={"grpo": given.grpo.model_copy(update={"gate": None})})
    assert gate.pass_gate(stage(bare)) is None


def test_a_lazy_policy_is_stopped_and_its_samples_are_kept(tmp_path: Path, use: Any) -> None:
    given, begun = settings(tmp_path), use(LAZY)
    with pytest.raises(TrainingError, match=r"^not ready for GRPO: 0 of 6 misses search again \(0%, at least 20%\)"):
        gate.pass_gate(stage(given))
    assert sorted(begun.values()) == [2, 2, 2], "three of five questions, each as often as a group has members"
    warned = settings(tmp_path, on_failure="warn")
    assert "grpo" in not_begun(stage(warned)), "so that the bounds may be changed"
    figures = gate.pass_gate(stage(warned))
    assert begun.total() == 6, "nothing is sampled again"
    assert figures is not None
    assert (figures["passed"], figures["misses"], figures["again"], figures["varied"]) == (False, 6, 0, 3)
    assert read_record(given.out / "gate" / "metrics.json") == figures


def test_one_that_searches_on_passes(tmp_path: Path, use: Any) -> None:
    use(GOOD)
    figures = gate.pass_gate(stage(settings(tmp_path)))
    assert figures is not None
    assert (figures["passed"], figures["search_again"], figures["varied_groups"]) == (True, 0.5, 1.0)


def test_an_interrupted_gate_goes_on(tmp_path: Path, use: Any) -> None:
    begun = use(GOOD, interrupt_at=5)
    with pytest.raises(KeyboardInterrupt):
        gate.pass_gate(stage(settings(tmp_path)))
    assert gate.pass_gate(stage(settings(tmp_path))) is not None
    assert begun.total() == 5 + 2, "four were kept"
