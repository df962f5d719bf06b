"""Two learners: each plays its part of the dev questions, and both know the figures of all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from learner_script import COUNT, learn
from tiny_job import WORDS

from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings

HERE = Path(__file__).parent


def test_two_learners_share_the_dev_questions_and_find_what_one_finds(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    build_tiny_policy(folder, WORDS, TinySettings(hidden_size=64, layers=2), 0)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    learners = [
        subprocess.Popen(
            [sys.executable, str(HERE / "learner_script.py"), str(folder), str(tmp_path), str(rank), "2"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        alone = learn(folder, tmp_path / "alone", batch_size=1)
        errors = [learner.communicate(timeout=200)[1] for learner in learners]
    finally:
        for learner in learners:
            learner.kill()
    assert [learner.returncode for learner in learners] == [0, 0], errors
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    times = 3  # before training and after each of two steps, the second of which is no better
    assert alone["played"] == ["0", "1", "2", "3", "4"] * times
    assert (first["played"], second["played"]) == (["0", "2", "4"] * times, ["1", "3"] * times)
    assert first["figures"] == second["figures"]
    assert first["figures"][0] == pytest.approx(alone["figures"][0])
    assert [found["unscored"] for found in first["figures"]] == [1, 0, 0]
    assert alone["figures"][0]["n"] == COUNT and alone["figures"][0]["em"] > 0
    assert alone["step"] == first["step"] == second["step"] == 2
