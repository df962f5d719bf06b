"""Demonstrations: plans played through the real environment and retriever by a scripted policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent.policies.scripted import ScriptedPolicy
from agent.rollout import RolloutDriver
from sleuth.errors import DataError
from sleuth.evidence import titles_found
from sleuth.protocols import Environment, Retriever, TextCodec
from sleuth.types import Action, Answer, Plan, Sampling, Search, Trajectory

Write = Callable[[str, Action], str]
"""A thought and an action as the text of a turn."""
_BATCH = 256


def play_plans(
    plans: Sequence[Plan],
    codec: TextCodec,
    environment: Callable[[], Environment],
    retriever: Retriever,
    top_k: int,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    write: Write | None = None,
    end_turns: bool = False,
) -> list[Trajectory]:
    """One trajectory per plan, in order; its policy tokens are the plan's text.

    ``write`` is how the environment's protocol writes a thought and an action, by default in tags; ``end_turns``:
    whether a search ends the policy's message with an EOS. Raises DataError if two plans have the same question id.
    """
    by_id = {plan.question.id: plan for plan in plans}
    if len(by_id) != len(plans):
        raise DataError("two plans have the same question id", "make the ids in the sources unique")
    said = lambda question, turn: plan_turn(by_id[question], turn, write or in_tags)
    policy = ScriptedPolicy(codec, said, end_turns=end_turns)
    driver = RolloutDriver(policy, codec, environment, retriever, top_k)
    played: list[Trajectory] = []
    for start in range(0, len(plans), _BATCH):
        batch = plans[start : start + _BATCH]
        played += driver.run([plan.question for plan in batch], Sampling(0.0))
        if on_progress:
            on_progress(len(played), len(plans))
    return played


def plan_turn(plan: Plan, turn: int, write: Write) -> str:
    """The demonstrator's text in turn ``turn``, from 0."""
    if turn < len(plan.steps):
        return write(plan.steps[turn].think, Search(plan.steps[turn].query))
    return write(plan.think, Answer(plan.answer))


def in_tags(think: str, action: Action) -> str:
    """The turns of a plan in the tag protocol."""
    if isinstance(action, Search):
        return f"<think> {think} </think>\n<search> {action.query} </search>"
    assert isinstance(action, Answer)
    return f"<think> {think} </think>\n<answer> {action.text} </answer>"


def worth_learning(trajectory: Trajectory, require_titles: bool) -> bool:
    """Whether a demonstration ended with its answer and, if required, found its supporting titles on the way.

    A demonstrator that answers what it never read would teach guessing. One that stops early on purpose needs only
    as many titles as it made searches.
    """
    if trajectory.stop != "answer":
        return False
    titles = titles_found(trajectory.question, trajectory.hits)
    return not require_titles or titles.found >= min(titles.wanted, len(trajectory.queries))
