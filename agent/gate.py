"""Whether a policy has something for GRPO to strengthen: sampled, it searches on after a miss, and its groups differ.

A policy that never searches twice is never rewarded for it, and a group in which all earn the same has no advantage.
Greedy exact match shows neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from agent.config import GateSettings
from sleuth.evidence import contains_answer, golds_of, informative_answers
from sleuth.types import ScoredTrajectory, Trajectory


@dataclass(frozen=True, slots=True)
class GateFigures:
    """Counts over ``episodes`` sampled in ``groups``, one a question; those that could not be scored are left out.

    ``misses``: episodes whose first search did not bring the answer, ``again``: those of them that searched again.
    ``varied``: groups whose rewards differ. ``searched``: episodes with a search. ``reward``: the mean.
    """

    episodes: int
    searched: int
    misses: int
    again: int
    groups: int
    varied: int
    reward: float | None

    @property
    def search_again(self) -> float | None:
        return self.again / self.misses if self.misses else None

    @property
    def varied_groups(self) -> float | None:
        return self.varied / self.groups if self.groups else None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "search_again": self.search_again, "varied_groups": self.varied_groups}

    def line(self) -> str:
        """All of it in one line, for people."""
        again = f"{self.again} of {self.misses} misses search again ({_share(self.search_again)})"
        varied = f"{self.varied} of {self.groups} groups vary ({_share(self.varied_groups)})"
        return f"{again}, {varied}; {self.searched} of {self.episodes} episodes search"


def gate_figures(groups: Sequence[Sequence[ScoredTrajectory]]) -> GateFigures:
    """The figures of ``groups``, the samples of one question each."""
    scored = [[row for row in group if row.reward is not None] for group in groups]
    rows = [row for group in scored for row in group]
    missed = [row.trajectory for row in rows if missed_first(row.trajectory)]
    judged = [{row.reward for row in group} for group in scored if len(group) > 1]
    rewards = [row.reward for row in rows if row.reward is not None]
    return GateFigures(
        episodes=len(rows),
        searched=sum(bool(row.trajectory.searches) for row in rows),
        misses=len(missed),
        again=sum(len(trajectory.searches) > 1 for trajectory in missed),
        groups=len(judged),
        varied=sum(len(values) > 1 for values in judged),
        reward=sum(rewards) / len(rewards) if rewards else None,
    )


def missed_first(trajectory: Trajectory) -> bool:
    """Whether the first search did not bring what the question asks for.

    That is a passage whose text has an accepted answer; where the answers are words such as yes, all gold passages.
    False for an episode without a search, and where nothing is known to judge it by.
    """
    if not trajectory.searches:
        return False
    question, hits = trajectory.question, trajectory.searches[0].hits
    if informative_answers(question.answers):
        return not any(contains_answer(hit.passage, question.answers) for hit in hits)
    found, wanted = golds_of(question).found(hits)
    return found < wanted


def shortfall(figures: GateFigures, gate: GateSettings, *, may_search_again: bool) -> tuple[str, str] | None:
    """What is too low and what to change; None where the policy may be trained.

    ``may_search_again``: the environment allows a second search, so that one is asked for.
    """
    if figures.episodes == 0:
        return "no sampled episode could be scored", "look at the failures above"
    if may_search_again and figures.searched == 0:
        return "no sampled episode searches", "warm-start it on demonstrations that search, or train that longer"
    again, varied = figures.search_again, figures.varied_groups
    if may_search_again and again is not None and again < gate.search_again:
        return (
            f"{figures.again} of {figures.misses} misses search again ({again:.0%}, at least {gate.search_again:.0%})",
            "give the warm start more demonstrations that search again after a miss, or more steps; "
            "environment.unseen: true makes a second search worth it",
        )
    if varied is None or varied < gate.varied_groups:
        share = f"{_share(varied)}, at least {gate.varied_groups:.0%}"
        return f"{figures.varied} of {figures.groups} groups vary in reward ({share})", _denser(figures)
    return None


def _denser(figures: GateFigures) -> str:
    if figures.reward is not None and figures.reward > 0.5:
        return f"the mean reward is {figures.reward:.2f}: train on harder questions, or raise grpo.group_size"
    return (
        f"the mean reward is {figures.reward or 0.0:.2f}: train on easier questions, add a denser reward (f1), raise "
        "grpo.group_size, or warm-start it longer"
    )


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.0%}"
