"""Episodes that a stop string or a special token could break, on the engine: the same tokens as with transformers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from episodes import CASES, Shelf, check, environment_of, keep, llama, play

from agent.rollout import RolloutDriver
from agent.tiny_config import TinySettings
from sleuth.types import Sampling


@pytest.mark.parametrize("name", ["opened-thought", "special-tags", "sentencepiece-legacy", "framed-hint", "hermes"])
def test_an_episode_on_the_engine(name, tmp_path, settings_of):
    from agent.policies.vllm_policy import open_vllm_policy

    case = next(case for case in CASES if case.name == name)
    episode = play(
        replace(case, model=partial(llama, settings=TinySettings(hidden_size=128, layers=2, max_length=2048)))
    )
    check(episode)
    keep(episode, tmp_path)
    policy, codec = open_vllm_policy(settings_of(tmp_path), str(tmp_path))
    try:
        driver = RolloutDriver(policy, codec, environment_of(case, codec), Shelf(), 1)
        (played,) = driver.run([episode.trajectory.question], Sampling(0.0))
    finally:
        policy.close()
    assert played.token_ids == episode.trajectory.token_ids
    assert played.policy_mask == episode.trajectory.policy_mask
    assert [turn.text for turn in played.turns] == [turn.text for turn in episode.trajectory.turns]
    ours, theirs = ([v for s in t.segments for v in s.logprobs] for t in (played, episode.trajectory))
    assert ours == pytest.approx(theirs, abs=1e-4)
