"""What a model's folder says reaches whoever samples from it or trains it: end tokens, own code, positions."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from agent.config import GrpoSettings, PolicySettings
from agent.learning.grpo import GrpoJob, TrainingData, make_trainer
from agent.learning.options import load_trained
from agent.learning.rollouts import to_row
from agent.policies.loading import check_device, load_codec, load_policy_model, read_config
from agent.policies.openai_policy import OpenAIPolicy
from agent.policies.transformers_policy import TransformersPolicy
from agent.rollout import RolloutDriver
from agent.tiny_families import build_tiny_family
from agent.warmstart import make_examples
from envs.config import EnvironmentSettings
from envs.factory import make_environment
from hub.config import LoraSettings
from rewards.config import RewardSettings
from rewards.scorer import make_scorer
from sleuth.errors import ConfigError, DataError, PolicyError
from sleuth.sinks import MultiSink
from sleuth.types import Answer, Generation, Question, Request, Sampling, ScoredTrajectory, Segment, Trajectory, Turn

WORDS = ["Question", ":", "?", "Paris", "London", "what", "is", "the", "city"]
ENVIRONMENT = EnvironmentSettings(
    kind="direct", preset="minimal", chat="never", turn_tokens=8, observation_tokens=8, total_tokens=64
)
QUESTION = Question("q", "what is the city ?", ("Paris",))


@pytest.fixture(scope="module")
def turns_end(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int, int]:
    """A model whose generation settings name a second end token, as Llama 3's do; both of them."""
    folder = tmp_path_factory.mktemp("ends") / "policy"
    build_tiny_family(folder, WORDS, "mistral")
    path = folder / "generation_config.json"
    written = json.loads(path.read_text())
    first = written["eos_token_id"]
    second = load_codec(str(folder)).encode("London")[0]
    path.write_text(json.dumps(written | {"eos_token_id": [first, second]}))
    return str(folder), first, second


def load(folder: str, **more: Any) -> tuple[Any, Any]:
    return load_policy_model(PolicySettings(model=folder, device="cpu", **more), folder)


def job_of(folder: str, out: Path, policy: PolicySettings | None = None, **settings: Any) -> GrpoJob:
    chosen = {"steps": 1, "questions": 1, "group_size": 2, "eval_steps": 1, "save_steps": 1, "beta": 0.01}
    return GrpoJob(
        settings=GrpoSettings(**{**chosen, **settings}),
        policy=policy or PolicySettings(model=folder, device="cpu"),
        model_name=folder,
        data=TrainingData([[QUESTION]], [1.0]),
        scorer=make_scorer([RewardSettings.of(kind="exact_match")]),
        make_driver=lambda p, codec: RolloutDriver(p, codec, make_environment(ENVIRONMENT, codec), None, 1),
        evaluate=lambda _: {"em": 0.0},
        out=out,
        seed=0,
        sink=MultiSink([]),
    )


def always(token: int) -> Any:
    return lambda logits, *_: (torch.full((len(logits),), token), torch.zeros(len(logits)))


def test_a_generation_ends_at_any_end_token(turns_end: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, first, second = turns_end
    model, codec = load(folder)
    assert codec.end_token_ids == (first, second)
    model.generation_config.eos_token_id = first  # the codec alone is enough
    for token in (first, second):
        monkeypatch.setattr("agent.policies.transformers_policy.pick", always(token))
        (done,) = TransformersPolicy(model, codec).generate([Request("q#0", [5, 6], 4)], Sampling(1.0))
        assert (done.token_ids, done.finish_reason) == ((token,), "eos")


def test_end_tokens_come_from_the_model_where_there_are_no_generation_settings(turns_end: Any, tmp_path: Path) -> None:
    folder, first, second = turns_end
    for path in Path(folder).iterdir():
        if path.suffix == ".json" and path.name != "generation_config.json":
            (tmp_path / path.name).write_text(path.read_text())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": [second, first]}))
    assert load_codec(str(tmp_path)).end_token_ids == (first, second)
    (tmp_path / "config.json").unlink()
    assert load_codec(str(tmp_path)).end_token_ids == (first,)


def test_servers_and_engines_are_told_every_end_token(turns_end: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from agent.policies.vllm_engine import parameters

    folder, *ends = turns_end
    settings = PolicySettings(model=folder, backend="openai", openai={"tokens": "always"}).openai
    policy = OpenAIPolicy(settings, load_codec(folder), "served")
    asked: list[dict[str, Any]] = []

    def complete(body: dict[str, Any]) -> dict[str, Any]:
        asked.append(body)
        logprobs = {"token_logprobs": [-0.5]}
        return {"token_ids": [ends[1]], "logprobs": logprobs, "finish_reason": "stop", "stop_reason": ends[1]}

    monkeypatch.setattr(policy._client, "complete", complete)
    (done,) = policy.generate([Request("q#0", [5], 4)], Sampling(1.0, stop=("</answer>",)))
    assert asked[0]["stop_token_ids"] == ends and done.finish_reason == "eos"
    policy.close()
    kinds = SimpleNamespace(RequestOutputKind=SimpleNamespace(DELTA=1, FINAL_ONLY=2))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=dict))
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", kinds)
    options: Any = SimpleNamespace(end_token_ids=load_codec(folder).end_token_ids)
    assert parameters(options, Request("q#0", [5], 4), Sampling(1.0), None)["stop_token_ids"] == ends


def test_a_row_that_ends_in_an_end_token_needs_no_other() -> None:
    turn = Turn(Generation((1,), (0.0,), "eos"), "", Answer("x"))
    segments = (Segment("prompt", (1,)), Segment("policy", (7, 50), (-0.1, -0.1)))
    scored = ScoredTrajectory(Trajectory(QUESTION, segments, (turn,), "answer"), 1.0)
    assert to_row(scored, 99, (99, 50)).completion_ids == [7, 50]
    assert to_row(scored, 99).completion_ids == [7, 50, 99]


OWN_CODE = """
from transformers import MistralConfig, MistralForCausalLM

class OwnConfig(MistralConfig):
    model_type = "of_ones_own"

class OwnForCausalLM(MistralForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model whose classes are in a file beside its weights."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    build_tiny_family(folder, WORDS, "mistral")
    (folder / "own.py").write_text(OWN_CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "of_ones_own", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_models_own_code_is_trusted_for_the_reference_too(own_code: str, tmp_path: Path) -> None:
    policy = PolicySettings(model=own_code, device="cpu", trust_remote_code=True)
    trainer = make_trainer(job_of(own_code, tmp_path / "run", policy))
    assert type(trainer.model).__name__ == type(trainer.ref_model).__name__ == "OwnForCausalLM"
    inputs = trainer._generate_and_score_completions([{"prompt": "0"}, {"prompt": "0"}])
    sampled = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    gap = (inputs["ref_per_token_logps"] - inputs["sampling_per_token_logps"])[sampled].abs().max()
    assert sampled.any() and gap < 1e-4


def test_code_that_is_not_trusted_is_not_run(own_code: str) -> None:
    with pytest.raises(PolicyError, match="contains custom code"):
        load(own_code)
    with pytest.raises(PolicyError, match=r"contains custom code .*policy\.trust_remote_code=true"):
        read_config(PolicySettings(model=own_code))


def test_an_adapter_is_trained_itself_and_never_beneath_a_second(turns_end: Any, tmp_path: Path) -> None:
    folder, *_ = turns_end
    model, _ = load(folder)
    adapter = str(tmp_path / "adapter")
    get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(adapter)
    trainer = make_trainer(job_of(adapter, tmp_path / "run"))
    assert {c.r for c in trainer.model.peft_config.values()} == {2}
    with pytest.raises(ConfigError, match=r"is an adapter already, and grpo\.lora would add a second one"):
        make_trainer(job_of(adapter, tmp_path / "second", lora=LoraSettings(r=4)))


def test_an_adapter_on_the_hub_is_trained_like_one_in_a_folder(
    turns_end: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded by its name, transformers freezes the base and the adapter: nothing would be trained."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached, commit = tmp_path / "models--owner--adapter", "a" * 40
    folder, *_ = turns_end
    model, codec = load(folder)
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapter.save_pretrained(cached / "snapshots" / commit)
    codec.tokenizer.save_pretrained(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    trained, _ = load_trained(PolicySettings(model="owner/adapter", device="cpu"), "owner/adapter", None)
    names = {name.split(".")[-3] for name, weight in trained.named_parameters() if weight.requires_grad}
    assert names == {"lora_A", "lora_B"}


@pytest.mark.parametrize("targets", [["nope"], ["q_proj", "nope"]])
def test_an_adapter_for_layers_that_are_not_there_is_refused(turns_end: Any, tmp_path: Path, targets: Any) -> None:
    """peft would leave out the one that is not there without a word."""
    folder, *_ = turns_end
    with pytest.raises(ConfigError, match=r"target_modules has 'nope', and no layer .*q_proj"):
        make_trainer(job_of(folder, tmp_path / "run", lora=LoraSettings(target_modules=targets)))


@pytest.mark.parametrize("device", ["meta", "xla"])
def test_a_device_that_cannot_compute_here_is_refused_in_a_line(device: str) -> None:
    with pytest.raises(ConfigError, match=rf"policy\.device '{device}' cannot be used here: [^\n]+ \(write auto\)"):
        check_device(device)


def test_attention_that_a_model_does_not_have_is_named_by_its_setting(tmp_path: Path) -> None:
    build_tiny_family(tmp_path / "mamba", WORDS, "mamba")
    said = r"policy\.attention is 'sdpa': MambaForCausalLM does not support [^\n]+ \(set it to eager\)"
    with pytest.raises(PolicyError, match=said):
        load(str(tmp_path / "mamba"))


@pytest.mark.parametrize(("named", "ends"), [("</s>", None), ([3, "</s>"], None), ([3, -1], (3,))])
def test_end_tokens_are_numbers(turns_end: Any, tmp_path: Path, named: Any, ends: Any) -> None:
    folder, first, _ = turns_end
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    if ends is not None:
        assert load_codec(str(tmp_path / "m")).end_token_ids == (first, *ends)
        return
    with pytest.raises(PolicyError, match=r"as its eos_token_id \(write token ids there\)"):
        load_codec(str(tmp_path / "m"))


def test_a_request_beyond_the_models_positions_is_one_line(tmp_path: Path) -> None:
    build_tiny_family(tmp_path / "short", WORDS, "gpt2", context=32)
    model, codec = load(str(tmp_path / "short"))
    policy = TransformersPolicy(model, codec)
    prompt = list(range(20, 40))
    assert policy.generate([Request("q#0", prompt, 12)], Sampling(1.0))
    with pytest.raises(PolicyError, match=r"up to 33 tokens is beyond the 32 positions .*total_tokens to 32"):
        policy.generate([Request("q#1", prompt, 13)], Sampling(1.0))


def test_demonstrations_longer_than_the_model_knows_are_left_out() -> None:
    played = Trajectory(QUESTION, (Segment("prompt", (1, 2)), Segment("policy", (3,), (0.0,))), (), "answer")
    assert len(make_examples([played], 9, 4)) == 1
    with pytest.raises(DataError, match="fits into 3 tokens"):
        make_examples([played], 9, 3)


def test_an_episode_fits_a_context_of_256_tokens(tmp_path: Path) -> None:
    """No turn goes beyond the last position; every token stands as it was sampled, with its log-prob."""
    build_tiny_family(tmp_path / "short", WORDS, "gpt2", context=256)
    model, codec = load(str(tmp_path / "short"))
    long = EnvironmentSettings(
        preset="minimal", chat="never", turns=20, turn_tokens=60, observation_tokens=60, total_tokens=256
    )
    driver = RolloutDriver(TransformersPolicy(model, codec), codec, make_environment(long, codec), None, 1)
    (played,) = driver.run([QUESTION], Sampling(1.0), seeds=[1])
    ids = torch.tensor([played.token_ids])
    assert played.stop == "token_budget" and 200 < ids.shape[1] <= 256
    assert sum(map(len, (t.generation.token_ids for t in played.turns))) == sum(played.policy_mask)
    with torch.no_grad():
        expected = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1).tolist()
    sampled = [value for segment in played.segments for value in segment.logprobs]
    at_policy = [v for v, mine in zip([0.0, *expected], played.policy_mask, strict=True) if mine]
    assert sampled == pytest.approx(at_policy, abs=1e-4)
