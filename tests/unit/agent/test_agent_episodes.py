"""One episode for every kind of tokenizer and template, played by a policy that samples: see benchmarks/episodes.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
from episodes import CASES, Played, check, keep, play, show

from sleuth.trajectories import read_trajectories
from sleuth.types import Segment


@pytest.fixture(scope="module")
def played() -> dict[str, Played]:
    return {}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_token_of_an_episode_is_accounted_for(case, played, capsys, tmp_path):
    episode = played[case.name] = play(case)
    check(episode)
    show(episode, tokens=False)
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split()[:3] for line in lines if line[:2] in ("0 ", "1 ")]
    assert shown == [
        [str(int(s.source == "policy")), s.source, str(len(s.token_ids))] for s in episode.trajectory.segments
    ]
    keep(episode, tmp_path)
    (kept,) = read_trajectories(tmp_path / "trajectory.jsonl")
    assert kept.trajectory.segments == episode.trajectory.segments


def test_the_check_sees_a_token_that_was_not_sampled(played):
    name = "special-tags"
    episode = played.get(name) or play(next(case for case in CASES if case.name == name))
    first, said, *rest = episode.trajectory.segments
    other = Segment("policy", (said.token_ids[1], *said.token_ids[1:]), said.logprobs)
    broken = replace(episode.trajectory, segments=(first, other, *rest))
    with pytest.raises(AssertionError):
        check(replace(episode, trajectory=broken))
