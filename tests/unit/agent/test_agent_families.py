"""Models of other families: sampler, trainer and a plain forward pass agree on every log-prob, or a line says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agent.config import GrpoSettings, PolicySettings
from agent.learning.answer_logprobs import AnswerReader
from agent.learning.grpo import GrpoJob, TrainingData, make_trainer
from agent.learning.length_groups import score_trimmed
from agent.policies import row_check
from agent.policies.loading import load_policy_model
from agent.policies.transformers_policy import TransformersPolicy
from agent.rollout import RolloutDriver
from agent.tiny_families import HYBRIDS, WINDOWED, build_tiny_family
from envs.config import EnvironmentSettings
from envs.factory import make_environment
from rewards.config import RewardSettings
from rewards.scorer import make_scorer
from sleuth.errors import PolicyError
from sleuth.sinks import MultiSink
from sleuth.types import Hit, Passage, Question, Request, Sampling, Trajectory

BOUND = 1e-4
WORDS = ["Question", ":", "?", ".", "Paris", "London", "capital", "of", "France", "what", "is", "the", "city"]
ENVIRONMENT = EnvironmentSettings(
    preset="minimal", chat="never", turns=3, searches=2, turn_tokens=8, observation_tokens=30, total_tokens=120
)
QUESTIONS = [Question("long", "what is the capital of France , the city of Paris ?", ("Paris",))]
QUESTIONS += [Question("short", "what is Paris ?", ("city",))]


class AlwaysParis:
    fingerprint = "paris"

    def search(self, queries: Any, k: int) -> list[list[Hit]]:
        return [[Hit(Passage("p", "Paris", "the city of Paris"), 1.0, 1)] for _ in queries]


class SearchFirst:
    """Searches whatever the policy says in its first turn, so that every episode has a passage."""

    def __init__(self, inner: Any) -> None:
        self._inner, self._turn = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def step(self, text: str) -> Any:
        self._turn += 1
        return self._inner.step("<search> Paris </search>" if self._turn == 1 else text)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family) / "policy"
            build_tiny_family(made[family], WORDS, family)
        return made[family]

    return folder


def load(folder: Path, **more: Any) -> tuple[Any, Any]:
    return load_policy_model(PolicySettings(model=str(folder), device="cpu", **more), str(folder))


def drive(policy: Any, codec: Any) -> RolloutDriver:
    make = make_environment(ENVIRONMENT, codec)
    return RolloutDriver(policy, codec, lambda: SearchFirst(make()), AlwaysParis(), 1)


class Recorded:
    """A policy that remembers which prefixes it was sent."""

    def __init__(self, policy: TransformersPolicy) -> None:
        self.policy = policy
        self.sent: dict[str, list[list[int]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def generate(self, requests: Any, sampling: Any, on_token: Any = None) -> Any:
        for request in requests:
            self.sent.setdefault(request.episode, []).append(list(request.prefix))
        return self.policy.generate(requests, sampling, on_token)


def logprobs_alone(model: Any, ids: tuple[int, ...]) -> list[float]:
    """Of every token but the first, from one forward pass without padding, cache or batch."""
    tokens = torch.tensor([ids])
    with torch.no_grad():
        logprobs = model(input_ids=tokens, use_cache=False).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(-1, tokens[0, 1:, None]).squeeze(-1).tolist()


def check_tokens(trajectory: Trajectory, sent: list[list[int]]) -> None:
    """What was sent each turn is what stood there, token by token; what was sampled was appended as it was."""
    turns = iter(trajectory.turns)
    so_far: list[int] = []
    for segment in trajectory.segments:
        if segment.source == "policy":
            assert sent.pop(0) == so_far
            assert segment.token_ids == next(turns).generation.token_ids
        so_far += segment.token_ids
    assert not sent and next(turns, None) is None


@pytest.mark.parametrize("family", [*HYBRIDS, *WINDOWED])
def test_an_episode_keeps_its_tokens_and_their_logprobs(folders: Any, family: str) -> None:
    model, codec = load(folders(family))
    policy = Recorded(TransformersPolicy(model, codec))
    played = drive(policy, codec).run(QUESTIONS * 2, Sampling(1.0), seeds=[3, 4, 5, 6])
    for number, trajectory in enumerate(played):
        check_tokens(trajectory, policy.sent[f"{trajectory.question.id}#{number}"])
        sources = [segment.source for segment in trajectory.segments]
        assert sources[:4] == ["prompt", "policy", "environment", "policy"]
        expected = [0.0, *logprobs_alone(model, trajectory.token_ids)]
        sampled = [value for segment in trajectory.segments for value in segment.logprobs]
        at_policy = [v for v, mine in zip(expected, trajectory.policy_mask, strict=True) if mine]
        assert sampled == pytest.approx(at_policy, abs=BOUND)


@pytest.mark.parametrize("family", HYBRIDS)
def test_the_trainer_recomputes_the_logprobs_that_were_sampled(folders: Any, family: str, tmp_path: Path) -> None:
    folder = folders(family)
    job = GrpoJob(
        settings=GrpoSettings(steps=1, questions=2, group_size=2, eval_steps=1, save_steps=1, beta=0.01),
        policy=PolicySettings(model=str(folder), device="cpu"),
        model_name=str(folder),
        data=TrainingData([QUESTIONS], [1.0]),
        scorer=make_scorer([RewardSettings.of(kind="exact_match")]),
        make_driver=drive,
        evaluate=lambda _: {"em": 0.0},
        out=tmp_path,
        seed=0,
        sink=MultiSink([]),
    )
    trainer = make_trainer(job)
    inputs = trainer._generate_and_score_completions([{"prompt": str(i // 2)} for i in range(4)])
    assert not inputs["prompt_mask"].all(), "prompts of unequal length are padded"
    trainer.current_gradient_accumulation_steps, trainer.sampled_at_step = 1, 0
    trainer.model.train()
    masks: list[torch.Tensor] = []
    trainer.model.register_forward_pre_hook(
        lambda _m, _a, given: masks.append(given["attention_mask"]), with_kwargs=True
    )
    trainer._compute_loss(trainer.model, inputs).backward()
    (gap,) = trainer._metrics["train"]["check/logprob_gap"]
    sampled = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    reference = (inputs["ref_per_token_logps"] - inputs["sampling_per_token_logps"])[sampled].abs().max()
    assert masks and all(mask[:, 0].all() for mask in masks), "kernels may read padding before a row"
    assert sampled.any() and gap < BOUND and reference < BOUND
    assert all(p.grad is None or p.grad.isfinite().all() for p in trainer.model.parameters())


@pytest.mark.parametrize("left", [True, False])
def test_padding_before_a_row_does_not_reach_a_recurrent_layer(folders: Any, left: bool) -> None:
    """This family's layers take padding for tokens, whatever the mask says."""
    model, _ = load(folders("recurrent_gemma"), attention="eager")
    rows, keep = [tuple(range(20, 50)), tuple(range(30, 43))], 8
    columns = max(map(len, rows))
    ids = torch.tensor([[0] * (columns - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (columns - len(row)) + [1] * len(row) for row in rows])

    def score(ids: torch.Tensor, mask: torch.Tensor, keep: int, _read: Any) -> Any:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        logps = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        return logps[:, -keep:], None, None

    with torch.no_grad():
        found, _, _ = score_trimmed(score, ids, mask, keep, split=False, left=left)
    expected = torch.tensor([logprobs_alone(model, row)[-keep:] for row in rows])
    gap = (found - expected).abs().max()
    assert gap > 0.01 if left else gap < BOUND


@pytest.mark.parametrize("family", ["recurrent_gemma", "qwen3_5_text", "mistral"])
def test_an_answer_is_as_likely_in_a_batch_as_alone(folders: Any, family: str) -> None:
    """Information gain reads answers after transcripts of many lengths."""
    model, codec = load(folders(family), attention="eager")
    environment = make_environment(ENVIRONMENT, codec)()
    pairs = [(tuple(range(4, 30)), "Paris"), (tuple(range(4, 9)), "the city of Paris"), (tuple(range(6, 24)), "London")]
    together, alone = (AnswerReader(codec, environment, rows).of(model)(pairs) for rows in (3, 1))
    assert together == pytest.approx(alone, abs=BOUND)


@pytest.mark.parametrize(
    ("family", "reason"), [("mamba", "a token's log-prob is"), ("recurrent_gemma", "a token's log-prob is")]
)
def test_a_family_whose_rows_cannot_be_batched_is_refused_when_it_is_opened(
    folders: Any, family: str, reason: str
) -> None:
    model, codec = load(folders(family), attention="eager")
    with pytest.raises(PolicyError) as refused:
        TransformersPolicy(model, codec)
    assert reason in str(refused.value) and family in str(refused.value) and "\n" not in str(refused.value)


def test_rows_may_differ_by_as_much_as_sampler_and_trainer(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 the monitor warns of more than 1e-4 nats between them."""
    model, codec = load(folders("lfm2"))
    monkeypatch.setattr(row_check, "_gap", lambda *_: 0.9 * BOUND)
    row_check.check_rows(model, codec)
    monkeypatch.setattr(row_check, "_gap", lambda *_: 1.1 * BOUND)
    with pytest.raises(PolicyError, match=r"log-prob is 0\.00011 nats off"):
        row_check.check_rows(model, codec)


@pytest.mark.parametrize("family", WINDOWED)
def test_a_window_looks_back_over_tokens_and_not_over_padding(folders: Any, family: str) -> None:
    """Prefixes longer than the window of 8 tokens, beside one shorter, through three turns."""
    model, codec = load(folders(family))
    policy = TransformersPolicy(model, codec)
    prefixes = [list(range(20, 20 + length)) for length in (30, 5, 12)]
    for turn in range(3):
        requests = [Request(f"{i}#0", prefix, 10, 10 * turn + i) for i, prefix in enumerate(prefixes)]
        for prefix, done in zip(prefixes, policy.generate(requests, Sampling(1.0)), strict=True):
            prefix += done.token_ids
            expected = logprobs_alone(model, tuple(prefix))[-len(done.token_ids) :]
            assert list(done.logprobs) == pytest.approx(expected, abs=BOUND)
            prefix += [40, 41, 42]
