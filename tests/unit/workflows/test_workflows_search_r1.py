"""``configs/search_r1.yaml`` amounts to what Search-R1's script v0.2 and the defaults of its trainer amount to."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import GrpoSettings, OptimizerSettings, PolicySettings, WarmstartSettings
from agent.learning.grpo import grpo_config
from agent.learning.options import optimizer_options
from sleuth.errors import ConfigError
from sleuth.settings import validate
from workflows.config import load_run_settings
from workflows.estimate import estimate_lines

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "configs" / "search_r1.yaml"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


def test_rollouts_and_updates_are_those_of_the_script() -> None:
    grpo = load_run_settings(CONFIG).grpo
    assert grpo is not None
    assert grpo.rollouts == 1005
    assert grpo.updates_per_rollout == 10 and grpo.steps == 10_050
    assert grpo.questions * grpo.group_size == 512 * 5 == 2560
    assert grpo.questions * grpo.group_size // grpo.minibatches == 256  # trajectories, not questions
    assert grpo.warmup_updates == int(0.285 * 1005) * 10 == 2860
    assert grpo.save_steps == grpo.eval_steps == 100 * 10


def test_the_loss_is_that_of_the_script(tmp_path: Path) -> None:
    settings = load_run_settings(CONFIG)
    assert settings.grpo is not None
    policy = PolicySettings(model="m", device="cpu")
    args = grpo_config(settings.grpo, policy, tmp_path, 0, settings.environment.total_tokens)
    assert (args.loss_type, args.importance_sampling_level) == ("bnpo", "token")
    assert (args.beta, args.use_bias_correction_kl) == (0.001, False)
    assert (args.epsilon, args.epsilon_high) == (0.2, None)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (8, 32)
    assert (args.steps_per_generation, args.num_iterations, args.num_generations) == (320, 1, 5)
    assert (args.learning_rate, args.lr_scheduler_type, args.max_steps) == (1e-6, "constant_with_warmup", 10_050)
    assert args.get_warmup_steps(args.max_steps) == 2860
    assert (args.weight_decay, args.adam_beta1, args.adam_beta2, args.max_grad_norm) == (0.01, 0.9, 0.999, 1.0)
    assert (args.entropy_coef, settings.grpo.top_p, settings.grpo.importance_cap) == (0.001, 0.95, "off")
    assert (args.temperature, args.mask_truncated_completions) == (1.0, False)
    assert settings.grpo.credit.model_dump() == {"kind": "group", "scale": "group"}


def test_the_environment_is_that_of_the_script() -> None:
    settings = load_run_settings(CONFIG)
    environment = settings.environment
    assert (environment.top_k, environment.searches, environment.turns) == (3, 4, 4 + 1)
    assert (environment.prompt_tokens, environment.turn_tokens, environment.observation_tokens) == (2048, 500, 500)
    assert environment.total_tokens == 4096 + 500
    preset = environment.wording()
    assert (preset.lenient, preset.hard_cut, preset.question_mark) == (True, True, True)
    assert [(reward.kind, reward.weight) for reward in settings.rewards] == [("exact_match", 1.0)]
    assert settings.retriever is not None
    retriever = settings.retriever.model_dump(mode="json")
    assert (retriever["kind"], retriever["encoder"]["backbone"]) == ("faiss", "intfloat/e5-base-v2")
    assert sum(source.weight for source in settings.data.train) == 169_615


def test_the_runs_of_the_second_paper_are_two_overrides_away() -> None:
    overrides = ["grpo.learning_rate=5e-7", "rewards=[{kind: search_r1_format}]"]
    settings = load_run_settings(CONFIG, overrides)
    (reward,) = [reward.model_dump() for reward in settings.rewards]
    assert settings.grpo is not None and settings.grpo.learning_rate == 5e-7
    scores = [reward[name] for name in ("structure_format_score", "final_format_score", "retrieval_score")]
    assert (reward["kind"], reward["weight"], scores) == ("search_r1_format", 1.0, [0.2, 0.1, 0.0])


@pytest.mark.usefixtures("offline")
def test_the_dry_run_says_it_offline_too_and_as_the_page_does() -> None:
    unknown, *lines = estimate_lines(load_run_settings(CONFIG), "grpo")
    assert unknown.startswith("policy: size and memory are not known: cannot read the configuration of policy.model")
    assert "Qwen/Qwen2.5-3B" in unknown and "\n" not in unknown
    assert lines == [
        "a rollout: 512 questions x 5 = 2,560 trajectories, at most 11,765,760 tokens",
        "its updates: 10 of 256 trajectories, in micro-batches of 8",
        "GRPO in all: 1,005 rollouts, 10,050 updates (2,860 of warm-up), 514,560 questions, 2,572,800 trajectories,"
        " at most 11,824,588,800 tokens",
    ]
    assert "\n".join(lines) in (ROOT / "docs" / "search_r1.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("offline")
def test_a_model_that_is_not_on_the_hub_is_still_an_error(tmp_path: Path) -> None:
    for model in (str(tmp_path), str(tmp_path / "none")):
        with pytest.raises(Exception, match="policy"):
            estimate_lines(load_run_settings(CONFIG, [f"policy.model={model}"]), "grpo")


@pytest.mark.parametrize(
    ("values", "updates"),
    [
        ({"steps": 40, "warmup_steps": 7}, 7),
        ({"steps": 40, "warmup_ratio": 0.25}, 10),
        ({"steps": 40, "minibatches": 4, "iterations": 2, "warmup_ratio": 0.5, "save_steps": 8, "eval_steps": 8}, 16),
        ({"steps": 41, "minibatches": 2, "warmup_ratio": 0.5}, 20),  # 21 rollouts, of which 10 whole ones
        ({"steps": 40, "warmup_ratio": 0.01}, 0),
    ],
)
def test_a_warm_up_is_of_whole_rollouts(tmp_path: Path, values: dict[str, object], updates: int) -> None:
    settings = validate(GrpoSettings, values, "grpo")
    assert settings.warmup_updates == updates
    args = grpo_config(settings, PolicySettings(model="m", device="cpu"), tmp_path, 0, 100)
    assert args.get_warmup_steps(settings.steps) == updates


def test_a_warm_start_has_a_ratio_too() -> None:
    assert optimizer_options(validate(WarmstartSettings, {"warmup_ratio": 0.1}, "w"))["warmup_steps"] == 0.1
    assert optimizer_options(validate(WarmstartSettings, {"warmup_steps": 3}, "w"))["warmup_steps"] == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup_ratio": 0.1, "warmup_steps": 3}, "give either warmup_steps or warmup_ratio"),
        ({"warmup_ratio": 0.1, "schedule": "constant"}, "schedule constant has no warm-up"),
        ({"warmup_ratio": 1.0}, "less than 1"),
    ],
)
def test_a_warm_up_that_cannot_be_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(OptimizerSettings, values, "x")
