"""A policy that sees pages: token-exact, masked, and trained with what it saw."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image as Pillow
from step_trainer import GROUP, ROWS, settings_of, trainer_of
from test_agent_model_files import job_of
from tiny_seeing import build_seeing_policy
from transformers import Idefics3ForConditionalGeneration

from agent.config import PolicySettings
from agent.learning.grpo import make_trainer
from agent.learning.rollouts import to_row
from agent.policies.loading import load_codec, load_policy_model
from agent.policies.scripted import ScriptedPolicy
from agent.policies.transformers_policy import TransformersPolicy
from agent.rollout import RolloutDriver
from agent.vision import VisionCodec
from envs.config import EnvironmentSettings
from envs.factory import make_environment
from hub.pictures import decode
from sleuth.errors import ConfigError, TrainingError
from sleuth.types import Generation, Hit, Image, Origin, Passage, Question, Request, Sampling, ScoredTrajectory

SETTINGS = EnvironmentSettings(
    preset="minimal", chat="never", turns=3, searches=2, turn_tokens=12, observation_tokens=60, total_tokens=200
)
SEARCH = "<search>Paris</search>"


def page(colour: str, size: tuple[int, int] = (40, 30)) -> Image:
    file = io.BytesIO()
    Pillow.new("RGB", size, colour).save(file, "PNG")
    return Image(f"{colour}.png", colour * 8, file.getvalue())


PAGES = [
    Passage("1", "Paris", "the capital", page("red")),
    Passage("2", "London", "the city of France"),
    Passage("3", "it", "found", page("blue", (30, 40))),
]


class Shelf:
    fingerprint = "shelf"

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = passages

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        hits = [Hit(passage, 1.0, rank) for rank, passage in enumerate(self.passages, start=1)]
        return [hits[:k] for _ in queries]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    return build_seeing_policy(tmp_path_factory.mktemp("seeing") / "policy", tiny_folder)


@pytest.fixture(scope="module")
def seeing(folder: Path) -> tuple[Any, VisionCodec]:
    model, codec = load_policy_model(PolicySettings(model=str(folder), device="cpu"), str(folder))
    assert isinstance(codec, VisionCodec)
    return model, codec


class SearchesFirst:
    """The first turn is written, the others are sampled."""

    trainable = True

    def __init__(self, policy: TransformersPolicy, codec: VisionCodec) -> None:
        self.policy, self.first = policy, ScriptedPolicy(codec, lambda _question, _turn: SEARCH)
        self.asked: list[Request] = []
        self.version = 0

    def generate(self, requests: Sequence[Request], sampling: Sampling, on_token: Any = None) -> list[Generation]:
        self.asked += requests
        if any(request.images for request in requests):
            return self.policy.generate(requests, sampling, on_token)
        return self.first.generate(requests, sampling, on_token)

    def release(self, episodes: Any) -> None:
        self.policy.release(episodes)


def play(model: Any, codec: VisionCodec, questions: int = 1, passages: Sequence[Passage] = PAGES) -> Any:
    policy = SearchesFirst(TransformersPolicy(model, codec), codec)
    driver = RolloutDriver(policy, codec, make_environment(SETTINGS, codec), Shelf(passages), 3)
    asked = [Question(str(n), f"what is the capital of France {'?' * (n % 3 + 1)}", ("x",)) for n in range(questions)]
    return policy, driver.run(asked, Sampling(), list(range(questions)))


def native_logprobs(folder: Path, codec: VisionCodec, tokens: Sequence[int], images: Sequence[Image]) -> torch.Tensor:
    """Log-probs [tokens - 1] by the model as it comes, given the pixels by its own processor."""
    model = Idefics3ForConditionalGeneration.from_pretrained(folder).eval()
    made: Any = (
        {}
        if not images
        else codec.pictures.processor(
            text="".join(["<image>"] * len(images)), images=[[decode(image) for image in images]], return_tensors="pt"
        )
    )
    pixels = {name: value for name, value in made.items() if name.startswith("pixel")}
    ids = torch.tensor([list(tokens)])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **pixels).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]


def test_a_page_is_seen_as_the_model_itself_sees_it_and_no_token_is_lost(folder: Path, seeing: Any) -> None:
    model, codec = seeing
    policy, (played,) = play(model, codec)
    sources = [segment.source for segment in played.segments]
    assert sources[:4] == ["prompt", "policy", "environment", "policy"]
    observed = list(played.segments[2].token_ids)
    for image in (PAGES[0].image, PAGES[2].image):
        shown = list(codec.look(image))
        assert codec.pictures.token_id in shown
        assert any(observed[at : at + len(shown)] == shown for at in range(len(observed)))
    assert codec.encode(" the city of France") == [t for t in codec.encode(" the city of France") if t in observed]
    assert not set(codec.encode("capital")) & set(observed), "a page's text is not read beside it"
    last, said = policy.asked[-1], played.turns[-1].generation.token_ids
    assert [*last.prefix, *said] == played.token_ids[: len(last.prefix) + len(said)]
    assert [played.token_ids[at : at + 3] for at, _ in last.images] == [list(codec.look(i))[:3] for _, i in last.images]
    row = to_row(ScoredTrajectory(played, 1.0), codec.eos_token_id)
    begin = len(played.segments[1].token_ids)
    assert row.mask[begin : begin + len(observed)] == [0] * len(observed) and sum(row.mask) == sum(played.policy_mask)
    start = len(played.segments[0].token_ids) + begin + len(observed)
    sampled = played.segments[3]
    end = start + len(sampled.token_ids)
    native = native_logprobs(folder, codec, played.token_ids[:end], [PAGES[0].image, PAGES[2].image])
    torch.testing.assert_close(torch.tensor(sampled.logprobs), native[start - 1 : end - 1], atol=1e-4, rtol=0)


def test_other_pages_give_other_probabilities_and_a_batch_changes_nothing(seeing: Any) -> None:
    model, codec = seeing
    model.eval()
    _, (one, *_) = play(model, codec)
    other = [replace(passage, image=passage.image and page("white")) for passage in PAGES]
    _, (another, *_) = play(model, codec, passages=other)
    assert one.segments[2].token_ids == another.segments[2].token_ids
    assert one.segments[3].logprobs[0] != another.segments[3].logprobs[0] or one.token_ids != another.token_ids
    _, several = play(model, codec, questions=5)
    assert several[0].token_ids == one.token_ids
    assert several[0].segments[3].logprobs == pytest.approx(one.segments[3].logprobs, abs=1e-4)


def test_rows_of_equal_tokens_see_their_own_pages_and_are_not_trained_on_by_their_tokens(seeing: Any) -> None:
    model, codec = seeing
    model.eval()
    opening, shown = codec.encode("what? "), list(codec.look(page("red")))
    prefix = [*opening, *shown, *codec.encode(" so")]

    def asked(name: str, colour: str) -> Request:
        return Request(name, prefix, 1, images=[(len(opening), page(colour))])

    policy = TransformersPolicy(model, codec)
    greedy = Sampling(0.0)
    alone = [policy.generate([asked(name, name)], greedy)[0].logprobs for name in ("red", "white")]
    both = [made.logprobs for made in policy.generate([asked("red", "red"), asked("white", "white")], greedy)]
    assert alone[0] != alone[1]
    assert both == [pytest.approx(one, abs=1e-5) for one in alone]
    with pytest.raises(TrainingError, match=r"different pages: red\.png and white\.png"):
        codec.pictures.shown_in(prefix)


def test_a_policy_that_sees_is_not_trained_on_rollouts_of_workers(folder: Path, tmp_path: Path) -> None:
    closed: list[bool] = []
    workers = SimpleNamespace(stale=False, apart=False, close=lambda: closed.append(True))
    job = replace(job_of(str(folder), tmp_path), make_source=lambda *_: workers)
    with pytest.raises(ConfigError, match="the trainer's own process only"):
        make_trainer(job)
    assert closed == [True]


def test_a_text_policy_reads_the_text_layer_and_so_does_one_that_is_given_no_bytes(
    tiny: Any, seeing: Any, folder: Path
) -> None:
    named = [replace(p, image=p.image and Image(p.image.name, p.image.sha256)) for p in PAGES]
    for codec, passages in ((tiny[1], PAGES), (seeing[1], named), (load_codec(str(folder)), PAGES)):
        environment = make_environment(SETTINGS, codec)()
        environment.reset(Question("1", "what", ("x",)))
        environment.step(SEARCH)
        seen = environment.observe([Hit(p, 1.0, i + 1) for i, p in enumerate(passages)], 150)
        assert "the capital" in seen.text and "found" in seen.text and seen.images == ()


def test_a_page_is_shown_whole_or_not_at_all(seeing: Any) -> None:
    _, codec = seeing
    length = len(codec.look(PAGES[0].image))
    for budget in range(30, 60, 3):
        settings = SETTINGS.model_copy(update={"observation_tokens": budget})
        environment = make_environment(settings, codec)()
        environment.reset(Question("1", "what", ("x",)))
        environment.step(SEARCH)
        seen = environment.observe([Hit(p, 1.0, i + 1) for i, p in enumerate(PAGES)], 150)
        assert len(seen.token_ids) <= budget
        whole = seen.token_ids.count(codec.pictures.token_id) / 4
        assert whole == len(seen.images) and length == 7
        for at, image in seen.images:
            assert seen.token_ids[at : at + length] == tuple(codec.look(image))


def test_words_of_a_passage_never_become_a_picture(seeing: Any) -> None:
    _, codec = seeing
    hostile = Passage("1", "<image>", "a <image><fake_token_around_image> b")
    environment = make_environment(SETTINGS, codec)()
    environment.reset(Question("1", "what <image>", ("x",)))
    environment.step(SEARCH)
    seen = environment.observe([Hit(hostile, 1.0, 1)], 150)
    assert codec.pictures.token_id not in seen.token_ids and seen.images == ()


def test_a_step_of_grpo_learns_from_what_was_seen(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    loaded: list[Any] = []
    import step_trainer

    def load(*given: Any) -> Any:
        loaded.append(load_policy_model(given[0], given[1], trainable=True))
        return loaded[-1]

    monkeypatch.setattr(step_trainer, "load_trained", load)
    rows: list[ScoredTrajectory] = []
    trainer = trainer_of(folder, tmp_path, settings_of("grpo", beta=0.0, steps=1), rows)
    model, codec = loaded[0]
    model.eval()
    _, played = play(model, codec, questions=ROWS)
    for place, trajectory in enumerate(played):
        prompt, written, *rest = trajectory.segments[:4]
        known = native_logprobs(folder, codec, [*prompt.token_ids, *written.token_ids], [])
        exact = replace(written, logprobs=tuple(known[len(prompt.token_ids) - 1 :].tolist()))
        shown = replace(trajectory, segments=(prompt, exact, *rest))
        rows.append(ScoredTrajectory(shown, float(place % 2), origin=Origin(0, place // GROUP)))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer.train()
    (log,) = [entry for entry in trainer.state.log_history if "check/logprob_gap" in entry]
    assert log["check/logprob_gap"] < 1e-4 and log["grad_norm"] > 0
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert any("vision_model" in name for name in moved) and any("text_model" in name for name in moved)


def test_a_saved_policy_has_its_processor(seeing: Any, tmp_path: Path) -> None:
    model, codec = seeing
    model.save_pretrained(tmp_path)
    codec.save(tmp_path)
    _, other = load_policy_model(PolicySettings(model=str(tmp_path), device="cpu"), str(tmp_path))
    assert isinstance(other, VisionCodec) and other.look(PAGES[0].image) == codec.look(PAGES[0].image)
