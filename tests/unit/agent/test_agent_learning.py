"""The pieces around TRL: rows, flat groups, data order, checkpoints, monitors."""

from __future__ import annotations

from collections import Counter
from statistics import fmean
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerControl, TrainerState, TrainingArguments

from agent.config import GrpoSettings, MonitorSettings, PolicySettings
from agent.learning.callbacks import DevEvaluation, Monitors, collapse_signs
from agent.learning.checkpoints import publish_policy
from agent.learning.credit.group import GroupCredit
from agent.learning.grpo import grpo_config
from agent.learning.mixture import mixture, spare_question
from agent.learning.rollouts import GroupRollouts, to_row
from agent.warmstart import bucketed_order, make_examples
from hub.config import LoraSettings
from sleuth.checkpoints import is_complete, mark_complete, newest_complete
from sleuth.errors import ArtifactError, ConfigError, DataError
from sleuth.settings import validate
from sleuth.sinks import MultiSink
from sleuth.types import Answer, Generation, Question, ScoredTrajectory, Segment, Trajectory, Turn

EOS = 99
QUESTION = Question("q", "?", ("x",))


def trajectory(*segments: Segment, stop="answer") -> Trajectory:
    last = Turn(Generation((1,), (0.0,), "stop"), "", Answer("x"))
    return Trajectory(QUESTION, (Segment("prompt", (1, 2)), *segments), (last,) if stop == "answer" else (), stop)


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(3, 50), min_size=1, max_size=5)), max_size=6))
def test_the_mask_is_one_exactly_where_the_policy_sampled(parts):
    segments = [
        Segment("policy" if mine else "environment", tuple(ids), (-0.5,) * len(ids) if mine else ())
        for mine, ids in parts
    ]
    played = trajectory(*segments)
    row = to_row(ScoredTrajectory(played, 1.0), EOS)
    assert len(row.completion_ids) == len(row.mask) == len(row.logprobs)
    assert sum(row.mask) == sum(played.policy_mask) == sum(len(ids) for mine, ids in parts if mine)
    assert all(logprob == 0.0 for logprob, mine in zip(row.logprobs, row.mask, strict=True) if not mine)
    assert row.completion_ids[-1] == EOS and row.prompt_ids == [1, 2]


def test_an_unscored_row_is_never_learned_from():
    row = to_row(ScoredTrajectory(trajectory(Segment("policy", (3, 4), (-1.0, -1.0))), None), EOS)
    assert len(row.mask) == 3 and not any(row.mask)


def test_an_episode_without_a_turn_still_makes_a_row():
    row = to_row(ScoredTrajectory(trajectory(stop="prompt_too_long"), 0.0), EOS)
    assert row.completion_ids == [0] and row.mask == [0]


def test_a_row_is_complete_to_trl_only_with_an_answer():
    """By TRL's rule: complete if the last token is EOS, another end token (98) or padding (0)."""
    ends = (EOS, 98, 0)

    def last(token: int, stop: str) -> tuple[int, int]:
        played = trajectory(Segment("policy", (3, token), (-1.0, -1.0)), stop=stop)
        row = to_row(ScoredTrajectory(played, 0.0), EOS, ends)
        assert row.mask == [1, 1, *[0] * (len(row.mask) - 2)] and row.logprobs[2:] == [0.0] * (len(row.mask) - 2)
        return row.completion_ids[-1], len(row.completion_ids)

    assert [last(token, "turn_budget") for token in (EOS, 98, 0, 7)] == [(1, 3), (1, 3), (1, 3), (7, 2)]
    assert [last(token, "answer") for token in (EOS, 98, 7)] == [(EOS, 2), (98, 2), (EOS, 3)]


class _Driver:
    """Plays a question as its id says, and remembers what it was asked."""

    codec = SimpleNamespace(eos_token_id=EOS)

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def run(self, questions, sampling, seeds):
        self.asked += [(q.id, seed) for q, seed in zip(questions, seeds, strict=True)]
        times = {"generate": 0.0, "retrieve": 0.0}
        return [
            Trajectory(q, (Segment("prompt", (1,)), Segment("policy", (2,), (-0.1,))), (), "turn_budget", times)
            for q in questions
        ]


class BatchMean:
    """Of a group that is flat by itself, a baseline of the whole rollout still says something."""

    def advantages(self, groups):
        mean = fmean(scored.reward for group in groups for scored in group)
        return [[scored.reward - mean for scored in group] for group in groups]


def played(driver, oversample, credit=None):
    """The rollout of four rows before step 3."""
    questions = [Question("flat", "?", ("x",)), *(Question(f"mixed{i}", "?", ("x",)) for i in range(5))]

    class Alternate:
        count = 0

        def score_all(self, played):
            return [self.score(trajectory) for trajectory in played]

        def score(self, played):
            self.count += 1
            return ScoredTrajectory(played, 0.0 if played.question.id == "flat" else float(self.count % 2))

    rollouts = GroupRollouts(
        questions, Alternate(), credit or GroupCredit(), group_size=2, temperature=1.0, seed=0, oversample=oversample
    )
    return rollouts.play(["0", "0", "1", "1"], 3, 0, driver)


def test_a_rollout_has_as_many_rows_as_prompts_with_seeds_of_their_own():
    driver = _Driver()
    assert len(played(driver, 1.0).scored) == 4
    assert [q for q, _ in driver.asked] == ["flat", "flat", "mixed0", "mixed0"]
    assert len({seed for _, seed in driver.asked}) == 4


def test_a_rollout_is_scored_in_one_piece():
    """A reward that asks a server asks about all rows at once."""
    batches = []

    class Counting:
        def score_all(self, played):
            batches.append(len(played))
            return [ScoredTrajectory(trajectory, 0.0) for trajectory in played]

    questions = [Question("a", "?", ("x",)), Question("b", "?", ("x",))]
    rollouts = GroupRollouts(questions, Counting(), GroupCredit(), group_size=2, temperature=1.0, seed=0)
    rollouts.play(["0", "0", "1", "1"], 0, 0, _Driver())
    assert batches == [4]


def test_flat_groups_are_replaced_within_the_stated_factor():
    driver = _Driver()
    record = played(driver, 3.0)
    assert record.metrics["groups/replaced"] == 1.0
    assert record.scored[0].reward != record.scored[1].reward
    assert len(driver.asked) <= 3 * 4
    again = _Driver()
    played(again, 3.0)
    assert again.asked == driver.asked


def test_a_group_is_flat_by_the_advantages_that_it_has_among_the_others():
    assert played(_Driver(), 3.0, BatchMean()).metrics["groups/replaced"] == 0.0


def test_spare_questions_follow_the_weights_too():
    draw = spare_question([10, 990], [0.9, 0.1])
    drawn = [draw(seed) for seed in range(1000)]
    assert drawn == [draw(seed) for seed in range(1000)]
    assert 850 < sum(position < 10 for position in drawn) < 950
    assert len(set(drawn)) > 80 and max(drawn) < 1000


def test_the_mixture_follows_weights_and_goes_through_sources_in_epochs():
    order = mixture([10, 30], [3.0, 1.0], 400, seed=5)
    assert order == mixture([10, 30], [3.0, 1.0], 400, seed=5)
    small = [p for p in order if p < 10]
    assert 0.65 < len(small) / 400 < 0.85
    assert all(set(small[i : i + 10]) == set(range(10)) for i in range(0, len(small) - 10, 10))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 8), st.integers(1, 12))
def test_bucketed_order_gives_whole_batches(lengths, batch, steps):
    order = bucketed_order(lengths, batch, steps, seed=1)
    assert len(order) == batch * steps and set(order) <= set(range(len(lengths)))


def test_bucketed_order_shows_every_row_equally_often():
    order = bucketed_order(list(range(64)), 4, 32, seed=1)
    assert set(Counter(order).values()) == {2}


def test_only_the_policy_s_tokens_are_learned_in_the_warm_start():
    played = trajectory(
        Segment("policy", (3, 4), (0.0, 0.0)), Segment("environment", (5,)), Segment("policy", (6,), (0,))
    )
    (example,) = make_examples([played], EOS, 100)
    assert example["labels"] == [-100, -100, 3, 4, -100, 6, EOS]
    with pytest.raises(DataError, match="max_tokens"):
        make_examples([played], EOS, 3)


def test_a_checkpoint_counts_only_when_it_is_whole(tmp_path):
    old, new = tmp_path / "checkpoint-2", tmp_path / "checkpoint-10"
    for folder in (old, new):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "optimizer.pt").write_bytes(b"moments")
    mark_complete(old)
    assert newest_complete(tmp_path) == old
    mark_complete(new)
    assert newest_complete(tmp_path) == new
    (new / "optimizer.pt").write_bytes(b"mom")
    assert not is_complete(new) and newest_complete(tmp_path) == old
    publish_policy(old, tmp_path / "policy")
    assert [p.name for p in (tmp_path / "policy").iterdir()] == ["model.safetensors"]
    with pytest.raises(ArtifactError):
        publish_policy(new, tmp_path / "other")


def test_monitors_name_what_collapses():
    fine = {"entropy": 0.5, "kl": 0.01, "rollout/answered": 1.0, "check/logprob_gap": 1e-6, "groups/flat": 0.3}
    assert collapse_signs(fine, MonitorSettings()) == []
    signs = collapse_signs(fine | {"entropy": 0.0, "kl": 9.0, "groups/flat": 1.0}, MonitorSettings())
    assert len(signs) == 3 and "entropy" in signs[0]


def test_nobody_searches_any_more_and_all_groups_are_flat():
    logs = {"rollout/searched": 0.0, "groups/flat": 1.0}
    signs = collapse_signs(logs, MonitorSettings())
    assert [sign.split()[0] for sign in signs] == ["rollout/searched", "groups/flat"]
    assert len(collapse_signs(logs, MonitorSettings(), searches=False)) == 1


def test_monitors_stop_in_further_updates_on_a_rollout_and_expect_searches_of_those_who_searched(caplog):
    def lines(*logs):
        monitors, control = Monitors(MonitorSettings(patience=2, stop_on_collapse=True), "float32"), TrainerControl()
        caplog.clear()
        for line in logs:
            monitors.on_log(None, TrainerState(), control, {"loss": 0.1, **line})
        return control.should_training_stop

    first, further = {"reward": 0.5, "rollout/answered": 0.0}, {"ratio/max": 1.0}
    assert lines({"reward": 0.5}, {"ratio/max": 99.0}, {"ratio/max": 99.0})
    assert lines(first, further, first)  # what a rollout was blamed for is not forgiven by an update on it
    assert not lines(first, {"reward": 0.5}, first)
    never, once = {"reward": 0.5, "rollout/searched": 0.0}, {"reward": 0.5, "rollout/searched": 0.5}
    assert not lines(never, never)
    assert lines(once, never, never)
    assert "rollout/searched is 0, below 0.05" in caplog.text
    resumed, state = Monitors(MonitorSettings(), "float32"), TrainerState(log_history=[once])
    caplog.clear()
    resumed.on_log(None, state, TrainerControl(), {"loss": 0.1, **never})
    assert "rollout/searched is 0, below 0.05" in caplog.text


def test_how_far_sampler_and_trainer_may_be_apart_follows_the_precision(caplog):
    logs = {"loss": 0.1, "reward": 0.5, "check/logprob_gap": 0.01}
    for dtype, warned in (("bfloat16", False), ("float32", True)):
        caplog.clear()
        Monitors(MonitorSettings(), dtype).on_log(None, TrainerState(), TrainerControl(), logs)
        assert ("check/logprob_gap is 0.01" in caplog.text) == warned


def test_settings_that_cannot_be_split_are_refused():
    with pytest.raises(ValueError, match="micro-batches"):
        GrpoSettings(questions=3, group_size=4, micro_batch=5)
    with pytest.raises(ValueError, match="8 rows cannot be split into 16 minibatches"):
        GrpoSettings(questions=2, group_size=4, minibatches=16)
    with pytest.raises(ValueError, match="save_steps"):
        GrpoSettings(minibatches=4, save_steps=10, eval_steps=12)
    for more in ({"lora": LoraSettings()}, {"beta": 0.0}):
        with pytest.raises(ValueError, match="sync_reference"):
            GrpoSettings(sync_reference=8, **more)


@pytest.mark.parametrize(
    "values",
    [
        *({name: float("inf")} for name in ("oversample", "temperature", "entropy_coefficient", "importance_cap")),
        *({name: float("inf")} for name in ("learning_rate", "beta")),
        {"weight_decay": float("nan")},
        {"top_entropy_quantile": 0.0},
        {"algorithm": ["grpo"]},
        {"monitors": {"max_kl": float("nan")}},
        {"credit": {"kind": "turns", "outcome": None}},
        {"credit": {"kind": "turns", "score": "gold_found", "weight": 0, "outcome": None}},
    ],
)
def test_values_that_mean_nothing_are_refused_in_one_line_that_names_the_setting(values):
    with pytest.raises(ConfigError) as caught:
        validate(GrpoSettings, values, "grpo")
    assert next(iter(values)) in str(caught.value) and "\n" not in str(caught.value)


def test_a_monitor_without_a_bound_is_one_at_infinity():
    limits = MonitorSettings(max_kl=float("inf"))
    assert collapse_signs({"kl": 1e9}, limits) == [] and collapse_signs({"kl": 1e9}, MonitorSettings())


def test_oversampling_that_could_replace_no_group_is_refused(monkeypatch, tmp_path):
    policy = PolicySettings(model="m", device="cpu")
    grpo_config(GrpoSettings(questions=4, oversample=1.25), policy, tmp_path, 0, 64)
    with pytest.raises(ConfigError, match=r"set it to 1\.34 or more"):
        grpo_config(GrpoSettings(questions=3, oversample=1.33), policy, tmp_path, 0, 64)
    grpo_config(GrpoSettings(questions=3, oversample=1.34), policy, tmp_path, 0, 64)
    for processes, message in (
        ("2", r"grpo\.oversample 1\.25 replaces no group where a process plays 2 \(set it to 1\.5 or more"),
        ("8", r"whole groups in each of 8 processes \(make grpo\.questions a multiple of 8\)"),
        ("64", "32 rows per rollout cannot be split among 64 processes"),
    ):
        monkeypatch.setenv("WORLD_SIZE", processes)
        with pytest.raises(ConfigError, match=message):
            grpo_config(GrpoSettings(questions=4, oversample=1.25), policy, tmp_path, 0, 64)


def dev_evaluations(tmp_path, figures, patience=0):
    """The trainer's state and control after evaluations with these dev EMs, or figures, at steps 0, 10, 20, …"""
    args = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    state, control = TrainerState(max_steps=1000), TrainerControl()
    coming = iter([found if isinstance(found, dict) else {"em": found} for found in figures])
    saved = SimpleNamespace(on_save=lambda *_args: None)
    trainer = SimpleNamespace(model=None, _save_checkpoint=lambda *_args, **_kwargs: None, callback_handler=saved)
    dev = DevEvaluation(trainer, lambda: next(coming), MultiSink([]), every=10, patience=patience)
    dev.on_train_begin(args, state, control)
    for step in range(10, 10 * len(figures), 10):
        state.global_step = step
        dev.on_step_end(args, state, control)
    return state, control


def test_of_equally_good_checkpoints_the_latest_is_published(tmp_path):
    state, _ = dev_evaluations(tmp_path, [0.25, 0.5, 0.5, 0.25])
    assert (state.best_metric, state.best_global_step) == (0.5, 20)
    assert state.best_model_checkpoint.endswith("checkpoint-20")


@pytest.mark.parametrize("figures, stops", [([0.5, 0.5, 0.5], True), ([0.25, 0.5, 0.5], False)])
def test_patience_counts_from_the_first_of_equals(tmp_path, figures, stops):
    _, control = dev_evaluations(tmp_path, figures, patience=2)
    assert control.should_training_stop is stops


def test_a_dev_question_that_fails_does_not_keep_a_run_from_choosing_its_best(tmp_path, caplog):
    """One question fails in every evaluation, as one that a judge cannot decide; in one evaluation all but one fail."""
    one, most = {"scored": 9.0, "unscored": 1.0}, {"scored": 1.0, "unscored": 9.0}
    figures = [{"em": 3 / 9, **one}, {"em": 5 / 9, **one}, {"em": 1.0, **most}, {"em": 4 / 9, **one}]
    state, _ = dev_evaluations(tmp_path, [*figures, {"unscored": 10.0, "scored": 0.0}])
    assert (state.best_metric, state.best_global_step) == (5 / 9, 10)
    assert [row["dev/em"] for row in state.log_history] == [3 / 9, 5 / 9, 4 / 9]
    assert "1 of 10 dev questions could not be scored: EM is that of the others" in caplog.text
    assert "9 of 10 dev questions could not be scored: these metrics are not used" in caplog.text


def test_the_best_of_a_run_that_an_earlier_version_began_is_not_forgotten(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    state = TrainerState(max_steps=1000, global_step=30, best_metric=0.75, best_global_step=10)
    dev = DevEvaluation(None, lambda: {"em": 0.5}, MultiSink([]), every=10, patience=2)
    control = TrainerControl()
    dev.on_step_end(args, state, control)
    assert (state.best_metric, state.best_global_step, control.should_training_stop) == (0.75, 10, True)


def test_a_group_may_lie_across_processes(monkeypatch):
    from agent.learning import trainer

    rows = [ScoredTrajectory(trajectory(Segment("policy", (3,), (-1.0,))), reward) for reward in (0.0, 0.0, 1.0, 1.0)]
    monkeypatch.setattr(trainer, "gather_object", lambda mine: [*rows[:3], *mine])
    second = SimpleNamespace(
        accelerator=SimpleNamespace(num_processes=2, process_index=3), num_generations=4, _credit=GroupCredit("none")
    )
    assert trainer.MeasuredGRPOTrainer._advantages_of(second, rows[3:]) == ([[0.5]], 0.0)
