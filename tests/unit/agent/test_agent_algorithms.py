"""Published algorithms by name, what each loss is meant to have, contradictions, and schemes worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import GrpoSettings, PolicySettings
from agent.learning.algorithms import ALGORITHMS, SEQUENCE_ONLY, TOKEN_ONLY
from agent.learning.credit.assign import assign
from agent.learning.credit.leave_one_out import LeaveOneOutCredit
from agent.learning.credit.reinforce import ReinforceCredit
from agent.learning.grpo import grpo_config
from sleuth.errors import ConfigError
from sleuth.settings import validate
from sleuth.types import Question, ScoredTrajectory, Segment, Trajectory


def settings(**values) -> GrpoSettings:
    return validate(GrpoSettings, values, "grpo")


def trl_of(tmp_path: Path, **values):
    return grpo_config(settings(**values), PolicySettings(model="m", device="cpu"), tmp_path, 0, 100)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_is_its_settings_and_what_is_set_beside_it_wins(name: str):
    chosen = settings(algorithm=name)
    assert chosen.loss == ALGORITHMS[name]["loss"] and chosen.beta == ALGORITHMS[name]["beta"]
    assert settings(algorithm=name, beta=0.5, learning_rate=1e-3).beta == 0.5
    again = validate(GrpoSettings, chosen.model_dump(mode="json"), "saved")
    assert again == chosen


def test_bounds_of_the_importance_ratio_are_those_of_the_papers():
    bounds = {name: (s.epsilon, s.epsilon_high) for name in ALGORITHMS for s in [settings(algorithm=name)]}
    assert bounds["gspo"] == (3e-4, 4e-4)
    assert bounds["dapo"] == (0.2, 0.28)
    assert bounds["cispo"] == (0.2, 5.0)
    assert bounds["grpo"] == bounds["rloo"] == (0.2, None)


def test_a_loss_alone_has_what_it_is_meant_to_have():
    assert settings(loss="cispo").epsilon_high == 5.0
    assert settings(loss="dr_grpo").credit.model_dump() == {"kind": "group", "scale": "none"}
    assert settings(loss="dr_grpo", credit={"kind": "group"}).credit.model_dump()["scale"] == "group"
    sequence = settings(importance="sequence")
    assert (sequence.epsilon, sequence.epsilon_high) == (3e-4, 4e-4)
    given = settings(importance="sequence", epsilon=1e-2)
    assert (given.epsilon, given.epsilon_high) == (1e-2, None)
    assert settings(loss="luspo").importance == "sequence"
    assert (settings().epsilon, settings().epsilon_high, settings().loss) == (0.2, None, "grpo")


@pytest.mark.parametrize(
    ("values", "bounds"),
    [
        ({"algorithm": "dapo", "loss": "cispo"}, (0.2, 5.0)),  # at 0.28 most tokens would lose most of their gradient
        ({"algorithm": "cispo", "loss": "dapo"}, (0.2, None)),  # at 5 nothing would be clipped
        ({"algorithm": "gspo", "importance": "token"}, (0.2, None)),  # at 4e-4 every token would be
        ({"algorithm": "gspo", "loss": "luspo"}, (2e-3, 2.5e-3)),
        ({"algorithm": "dapo", "loss": "grpo"}, (0.2, 0.28)),  # both clip the same ratio
        ({"algorithm": "dapo", "loss": "cispo", "epsilon_high": 3.0}, (0.2, 3.0)),
        ({"algorithm": "gspo", "importance": "token", "epsilon": 0.1}, (0.1, None)),
    ],
)
def test_bounds_follow_the_ratio_when_another_loss_or_level_is_set_beside_an_algorithm(values, bounds):
    chosen = settings(**values)
    assert (chosen.epsilon, chosen.epsilon_high) == bounds


def test_cispo_cuts_the_ratio_off_at_five_in_trl(tmp_path: Path):
    assert trl_of(tmp_path, loss="cispo").epsilon_high == 5.0


@pytest.mark.parametrize(
    "values",
    [
        *({"loss": loss, "importance": "sequence"} for loss in sorted(TOKEN_ONLY)),
        *({"loss": loss, "importance": "token"} for loss in sorted(SEQUENCE_ONLY)),
        {"algorithm": "gspo", "loss": "dapo"},
    ],
)
def test_contradictions_that_trl_warns_of_are_refused_in_one_line(values):
    with pytest.raises(ConfigError, match=r"loss \w+ (adds tokens up|is defined on whole sequences)"):
        settings(**values)


def test_every_contradiction_that_trl_knows_is_known_here(tmp_path: Path, caplog):
    """TRL only warns, in a logger that is silent here."""
    import inspect

    from trl import GRPOTrainer

    source = inspect.getsource(GRPOTrainer.__init__)
    assert '"sequence" and args.loss_type in ["bnpo", "dr_grpo", "dapo", "cispo"]' in source
    assert 'args.loss_type == "luspo" and args.importance_sampling_level != "sequence"' in source
    assert 'args.loss_type == "vespo" and args.importance_sampling_level != "token"' in source


def test_a_mistyped_algorithm_is_told():
    with pytest.raises(ConfigError, match=r"unknown algorithm 'gsop'.*gspo"):
        settings(algorithm="gsop")


def given_to(credit, *groups):
    segments = (Segment("prompt", (1,)), Segment("policy", (2, 3), (-1.0, -1.0)))
    played = Trajectory(Question("q", "?", ("x",)), segments, (), "answer")
    found = assign(credit, [[ScoredTrajectory(played, reward) for reward in group] for group in groups])
    return [[row[0] for row in group] for group in found]


def test_leave_one_out_by_hand():
    credit = LeaveOneOutCredit()
    assert given_to(credit, [1.0, 0.0, 0.0, 1.0]) == [pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])]
    assert given_to(credit, [1.0, None, 0.0], [0.3, 0.3]) == [[1.0, 0.0, -1.0], [0.0, 0.0]]
    assert given_to(credit, [1.0, None]) == [[0.0, 0.0]]


def test_reinforce_by_hand():
    assert given_to(ReinforceCredit(), [1.0, 0.25], [0.0, None]) == [[1.0, 0.25], [0.0, 0.0]]
    batch = ReinforceCredit("batch")
    assert given_to(batch, [1.0, 0.5], [0.0, None]) == [[0.5, 0.0], [-0.5, 0.0]]
    assert given_to(batch, [0.1 + 0.2, 0.3], [0.3, 0.3]) == [[0.0, 0.0], [0.0, 0.0]]
    scaled = 0.5 / (0.5**0.5 + 1e-4)
    assert given_to(ReinforceCredit("batch", "batch"), [1.0], [0.0]) == [[scaled], [-scaled]]
