"""What keeps training stable: importance weights worked out by hand, settings that have no effect, nucleus sampling."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agent.config import GrpoSettings, PolicySettings
from agent.learning.grpo import grpo_config
from agent.learning.importance import Importance, importance_of
from agent.learning.rollouts import training_sampling
from agent.policies.backends import for_training, has_own_engine
from agent.policies.sampler import pick, uniforms
from agent.policies.transformers_policy import TransformersPolicy
from sleuth.errors import ConfigError
from sleuth.settings import validate
from sleuth.types import Request, Sampling


def settings(**values) -> GrpoSettings:
    return validate(GrpoSettings, values, "grpo")


MASK = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()
RATIOS = torch.tensor([[4.0, 0.5, 9.0, 1.0], [9.0, 0.5, 0.25, 9.0], [9.0, 9.0, 9.0, 9.0]])  # 9 where masked


def weights_of(**kind) -> tuple[list[list[float]], dict[str, float]]:
    sampled = torch.full_like(RATIOS, -3.0)
    found, figures = Importance(**kind).weights(sampled + RATIOS.log(), sampled, MASK)
    return [[round(value, 5) for value in row] for row in found.tolist()], figures


def test_a_token_s_ratio_is_cut_off_or_dropped():
    found, figures = weights_of(cap=2.0)
    assert found == [[2.0, 0.5, 1.0, 1.0], [1.0, 0.5, 0.25, 1.0], [1.0] * 4]
    assert figures == pytest.approx(
        {"importance/mean": 1.25, "importance/min": 0.25, "importance/max": 4.0, "importance/truncated": 0.2}
    )
    assert weights_of(cap=2.0, floor=0.4)[0] == [[2.0, 0.5, 1.0, 1.0], [1.0, 0.5, 0.4, 1.0], [1.0] * 4]
    found, figures = weights_of(cap=2.0, floor=0.4, mode="token_mask")
    assert found == [[0.0, 0.5, 1.0, 1.0], [1.0, 0.5, 0.0, 1.0], [1.0] * 4]
    assert figures["importance/masked"] == pytest.approx(0.4) and "importance/truncated" not in figures


def test_a_sequence_s_ratio_is_the_product_of_its_tokens():
    found, figures = weights_of(cap=1.5, mode="sequence_truncate")
    assert found == [[1.5], [0.125], [1.0]]
    assert figures == pytest.approx(
        {
            "importance/mean": (2.0 + 0.125) / 2,  # of the rows that have a token
            "importance/min": 0.125,
            "importance/max": 2.0,
            "importance/truncated": 0.5,
        }
    )
    assert weights_of(cap=1.5, mode="sequence_mask")[0] == [[0.0], [0.125], [1.0]]
    assert weights_of(cap=3.0, floor=0.5, mode="sequence_mask")[0] == [[2.0], [0.0], [1.0]]


def test_correction_is_on_by_itself_where_another_policy_or_engine_samples():
    assert importance_of(settings(), differs=False) is None
    assert importance_of(settings(), differs=True) == Importance(2.0, None, "token_truncate")
    assert importance_of(settings(importance_cap="off"), differs=True) is None
    chosen = settings(importance_cap=3.0, importance_mode="sequence_mask", importance_floor=0.5)
    assert importance_of(chosen, differs=False) == Importance(3.0, 0.5, "sequence_mask")
    assert [has_own_engine(name) for name in ("transformers", "vllm", "plain_policy:PlainPolicy")] == [
        False,
        True,
        True,
    ]


def test_a_mode_that_switches_nothing_on_is_said(caplog):
    """Not refused: one config may serve this machine and a cluster."""
    chosen = settings(importance_mode="sequence_mask", importance_floor=0.5)
    assert importance_of(chosen, differs=True) == Importance(2.0, 0.5, "sequence_mask")
    assert importance_of(settings(), differs=False) is None
    assert not caplog.records
    assert importance_of(chosen, differs=False) is None
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("grpo.importance_floor has no effect: the policy that is trained samples itself")


def test_what_trl_has_is_passed_through(tmp_path: Path):
    chosen = {
        "off_policy_mask_threshold": 0.5,
        "top_entropy_quantile": 0.2,
        "delta": 4.0,
    }
    args = grpo_config(
        settings(**chosen, entropy_coefficient=0.01), PolicySettings(model="m", device="cpu"), tmp_path, 0, 9
    )
    assert {name: getattr(args, name) for name in chosen} == chosen and args.entropy_coef == 0.01
    sapo = {"sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0}
    vespo = {"vespo_k_pos": 1.0, "vespo_lambda_pos": 1.5, "vespo_k_neg": 2.5, "vespo_lambda_neg": 0.5}
    for loss, numbers in (("sapo", sapo), ("vespo", vespo)):
        args = grpo_config(settings(loss=loss, **numbers), PolicySettings(model="m", device="cpu"), tmp_path, 0, 9)
        assert {name: getattr(args, name) for name in numbers} == numbers


def test_our_defaults_are_trl_s(tmp_path: Path):
    from trl import GRPOConfig

    names = [
        name for name in GrpoSettings.model_fields if name.startswith(("sapo_", "vespo_", "off_", "top_ent", "del"))
    ]
    args = GRPOConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    assert len(names) == 9 and {n: getattr(args, n) for n in names} == {n: getattr(settings(), n) for n in names}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        *(({"loss": loss, "delta": 4.0}, f"loss {loss} does not clip") for loss in ("cispo", "sapo", "vespo")),
        ({"delta": 1.2}, r"delta 1\.2 leaves no room for clipping at 1 \+ 0\.2"),
        ({"delta": 1.28, "algorithm": "dapo"}, r"clipping at 1 \+ 0\.28"),
        ({"sapo_temperature_pos": 2.0}, "sapo_temperature_pos is a number of loss sapo, not of grpo"),
        ({"loss": "sapo", "vespo_k_neg": 2.0}, "vespo_k_neg is a number of loss vespo, not of sapo"),
        ({"importance_cap": "off", "importance_mode": "token_mask"}, "importance_mode has no effect with"),
        ({"importance_cap": "off", "importance_floor": 0.5}, "importance_floor has no effect with"),
        ({"loss": "vespo", "importance_mode": "sequence_mask"}, "vespo weighs whole sequences itself"),
        ({"top_p": 0.0}, "top_p"),
        ({"entropy_coefficient": -0.1}, "entropy_coefficient"),
    ],
)
def test_what_trl_refuses_or_ignores_is_refused_in_one_line(values, says):
    with pytest.raises(ConfigError, match=says) as caught:
        settings(**values)
    assert "\n" not in str(caught.value)


def test_from_the_nucleus_with_log_probs_of_the_whole_distribution():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).expand(2_000, -1)
    draws = torch.from_numpy(uniforms(range(2_000), 1))[:, 0]
    tokens, logprobs = pick(logits, draws, training_sampling(1.0, 0.7))
    renormalised, inside = pick(logits, draws, Sampling(1.0, 0.7))
    assert tokens.tolist() == renormalised.tolist() and set(tokens.tolist()) == {0, 1}
    shares = torch.tensor([0.5, 0.3])
    assert torch.allclose(logprobs, shares[tokens].log(), atol=1e-5)
    assert torch.allclose(inside, (shares / 0.8)[tokens].log(), atol=1e-5)
    tokens, logprobs = pick(logits, draws, training_sampling(0.5, 0.7))  # squares: 0.25, 0.09, ... of 0.365
    assert torch.allclose(logprobs, (torch.tensor([0.25, 0.09]) / 0.365)[tokens].log(), atol=1e-5)
    assert training_sampling(0.9, 1.0) == Sampling(0.9)


def test_a_trainer_finds_the_log_probs_that_the_sampler_of_a_nucleus_reports(tiny):
    model, codec = tiny
    request = Request("q#0", codec.encode("Question : what is the capital of France ?"), 12, 5)
    done = TransformersPolicy(model, codec).generate([request], training_sampling(0.8, 0.6))[0]
    ids = torch.tensor([[*request.prefix, *done.token_ids]])
    with torch.no_grad():
        logps = (model(ids).logits[0, :-1] / 0.8).log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
    assert list(done.logprobs) == pytest.approx(logps[-len(done.token_ids) :].tolist(), abs=1e-4)


def test_an_engine_is_set_to_the_log_probs_of_the_whole_distribution_or_refused():
    vllm = PolicySettings(model="m", backend="vllm")
    assert for_training(vllm, training_sampling(1.0, 0.95)).vllm.full_logprobs
    assert for_training(vllm, training_sampling(0.7, 1.0)) == vllm
    transformers = PolicySettings(model="m")
    assert for_training(transformers, training_sampling(0.7, 0.95)) == transformers
    with pytest.raises(ConfigError, match=r"at temperature 1 only.*set grpo\.temperature to 1"):
        for_training(vllm, training_sampling(0.7, 0.95))
