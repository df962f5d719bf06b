"""One episode for every kind of model and tokenizer that behaves differently, with the loss mask made visible.

    python benchmarks/episodes.py [NAME ...] [--tokens] [--out FOLDER]

A tiny network learns one transcript by heart and then plays the episode itself: what is shown was sampled, token by
token, by the transformers backend. Before an episode is printed, ``check`` asserts that

- every request's prefix is the transcript so far, token by token, and the sampled tokens stand in it as sampled;
- the tokens of every observation decode to its text, control tokens of the chat template aside;
- the log-probs that were recorded are those of one pass over the whole transcript, as a trainer makes it.

The mask is 1 where the policy sampled. ``--tokens`` prints a line for each token; ``--out`` keeps each episode's model
and trajectory, for ``sleuth inspect trajectory FOLDER/NAME/trajectory.jsonl --model FOLDER/NAME``.

To add one, append a ``Case`` to ``CASES``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tiny_tokenizers import CALLS, SPECIAL, TAGS, byte_level, sentencepiece

from agent.codec import HFCodec
from agent.policies.scripted import ScriptedPolicy
from agent.policies.transformers_policy import TransformersPolicy
from agent.rollout import RolloutDriver
from agent.tiny import make_model
from agent.tiny_config import TinySettings
from agent.tiny_families import make_family
from agent.warmstart import to_example
from envs.config import EnvironmentSettings
from envs.factory import make_environment
from sleuth.reserved import TAG_STRINGS
from sleuth.trajectories import TrajectoryWriter
from sleuth.types import Generation, Hit, Passage, Question, Request, Sampling, ScoredTrajectory, Trajectory

QUESTION = Question("q", "Where was Ibsen born?", ("Skien",))
PASSAGES = {
    "Ibsen": Passage("p1", "Henrik Ibsen", "A playwright, born in Skien in 1828."),
    "Skien": Passage("p2", "Skien", "A city in Norway."),
}
END = "{end}"
"""In a script: the token that ends a message."""
IBSEN, SKIEN = (
    f'<tool_call>\n{{"name": "search", "arguments": {{"query": "{query}"}}}}\n</tool_call>' for query in PASSAGES
)
ROOMY = {"protocol": "hermes", "turn_tokens": 300, "total_tokens": 2048, "turns": 5}

SMALL = TinySettings(hidden_size=64, layers=2)
LONG = TinySettings(hidden_size=64, layers=2, max_length=2048)


def llama(codec: HFCodec, settings: TinySettings = SMALL) -> Any:
    return make_model(len(codec.tokenizer), codec.pad_token_id, codec.eos_token_id, settings, seed=0)


def family(name: str, codec: HFCodec, context: int = 1024) -> Any:
    return make_family(name, len(codec.tokenizer), codec.pad_token_id, codec.eos_token_id, context=context)


@dataclass(frozen=True, slots=True)
class Case:
    """``said`` is what the policy says, a turn each; ``generations``, of how many generations each turn is made."""

    name: str
    about: str
    tokenizer: Callable[[], Any]
    said: Sequence[str]
    generations: Sequence[int]
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: Callable[[HFCodec], Any] = llama


CASES = [
    Case(
        "opened-thought",
        "DeepSeek-R1's template opens the thought; a search mentioned in it is not made, and the turn goes on",
        partial(byte_level, "deepseek", "deepseek_r1_distill"),
        (
            "I could <search> x </search> but ask for Ibsen.</think>\n<search> Ibsen </search>",
            "<think> Skien. </think>\n<answer> Skien </answer>",
        ),
        (2, 1),
        {"chat": "always"},
    ),
    Case(
        "framed-hint",
        "a message that ends without an action is answered by a message, and the template opens the next thought",
        partial(byte_level, "deepseek", "deepseek_r1_distill"),
        (
            f"I know it.</think>\nSkien{END}",
            "Better look.</think>\n<search> Ibsen </search>",
            "<think> Yes. </think>\n<answer> Skien </answer>",
        ),
        (1, 1, 1),
        {"chat": "always"},
    ),
    Case(
        "thinking-off",
        "Qwen3.5's template with enable_thinking: false, a system message, and no thought",
        partial(byte_level, "chatml", "qwen3_5_think"),
        ("<search> Ibsen </search>", f"Skien{END}", "<answer> Skien </answer>"),
        (1, 1, 1),
        {"chat": "always", "chat_template_kwargs": {"enable_thinking": False}, "system": "Be brief."},
    ),
    Case(
        "sentencepiece-legacy",
        "a legacy Llama tokenizer, which puts a space before every text that it encodes",
        partial(sentencepiece, legacy=True),
        ("<think> Where? </think>\n<search> Ibsen </search>", "<think> Skien. </think>\n<answer> Skien </answer>"),
        (1, 1),
    ),
    Case(
        "sentencepiece",
        "Llama 2's and Mistral's tokenizer as of transformers 5, which puts a space before the first text only",
        partial(sentencepiece, legacy=False),
        ("<think> Where? </think>\n<search> Ibsen </search>", "<think> Skien. </think>\n<answer> Skien </answer>"),
        (1, 1),
    ),
    Case(
        "special-tags",
        "the protocol's tags are special tokens, each a single token that decoding leaves out by default",
        partial(byte_level, special=TAGS),
        (
            "<think> A <search> x </search>? No: Ibsen. </think><search> Ibsen </search>",
            "<think> Skien. </think><answer> Skien </answer>",
        ),
        (2, 1),
    ),
    Case(
        "hermes",
        "Qwen3's template and special tokens for calls: two calls in a turn, and a made-up result is a mention",
        partial(byte_level, "chatml", "qwen3", CALLS),
        (
            f"<think> No <tool_response> yet. </think>\n{IBSEN}\n{SKIEN}{END}",
            f"Skien.{END}",
            "<think> Skien. </think>\n<answer> Skien </answer>",
        ),
        (2, 1, 1),
        ROOMY,
        partial(llama, settings=LONG),
    ),
    Case(
        "hermes-opened-thought",
        "Qwen3.5's template opens each thought; the call mentioned in the first is not made",
        partial(byte_level, "chatml", "qwen3_5_think", (*TAGS, *CALLS)),
        (f"I could {IBSEN} but ask for Skien.</think>\n{SKIEN}{END}", "Skien.</think>\n<answer> Skien </answer>"),
        (1, 1),
        ROOMY,
        partial(llama, settings=LONG),
    ),
    Case(
        "hermes-sentencepiece",
        "Llama 2's tokenizer with Qwen3's template, whose end of a message is not the tokenizer's EOS",
        partial(sentencepiece, legacy=False, special=SPECIAL["chatml"][1:], template="qwen3"),
        (f"<think> Where? </think>\n{IBSEN}{END}", "<think> Skien. </think>\n<answer> Skien </answer>"),
        (1, 1),
        ROOMY,
        partial(llama, settings=LONG),
    ),
    Case(
        "hybrid-attention",
        "Qwen3.5's layers: a recurrent state in three of four, so that every turn encodes its prefix anew",
        byte_level,
        ("<think> Where? </think><search> Ibsen </search>", "<think> Skien. </think><answer> Skien </answer>"),
        (1, 1),
        model=partial(family, "qwen3_5_text"),
    ),
    Case(
        "context-256",
        "GPT-2's learned positions, of which there are 256, and an episode of as many tokens at most",
        byte_level,
        ("<think> Where? </think><search> Ibsen </search>", "<think> Skien. </think><answer> Skien </answer>"),
        (1, 1),
        {"total_tokens": 256, "observation_tokens": 100},
        partial(family, "gpt2", context=256),
    ),
]


class Shelf:
    fingerprint = "shelf"

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [[Hit(PASSAGES[query], 1.0, 1)][:k] for query in queries]


class Watched(TransformersPolicy):
    """Keeps every request and what came of it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen: list[tuple[Request, Generation]] = []

    def generate(self, requests: Sequence[Request], *args: Any, **options: Any) -> list[Generation]:
        done = super().generate(requests, *args, **options)
        self.seen += zip(requests, done, strict=True)
        return done


@dataclass(frozen=True, slots=True)
class Played:
    case: Case
    codec: HFCodec
    model: Any
    trajectory: Trajectory
    seen: Sequence[tuple[Request, Generation]]


def environment_of(case: Case, codec: HFCodec) -> Callable[[], Any]:
    values = {"preset": "minimal", "turn_tokens": 120, "total_tokens": 1000, "turns": 4, "searches": 2}
    return make_environment(EnvironmentSettings(**{**values, **case.settings}), codec)


def play(case: Case) -> Played:
    """Teach a tiny model the transcript of ``case``, then let it play the episode, greedily."""
    codec = HFCodec(case.tokenizer())
    environment = environment_of(case, codec)
    end = codec.tokenizer.eos_token
    teacher = ScriptedPolicy(codec, lambda _, turn: case.said[turn].replace(END, end))
    (lesson,) = RolloutDriver(teacher, codec, environment, Shelf(), 1).run([QUESTION], Sampling(0.0))
    model = case.model(codec)
    learn(model, to_example(lesson, codec.eos_token_id))
    policy = Watched(model, codec)
    (trajectory,) = RolloutDriver(policy, codec, environment, Shelf(), 1).run([QUESTION], Sampling(0.0))
    return Played(case, codec, model, trajectory, policy.seen)


def learn(model: Any, example: Mapping[str, Sequence[int]], steps: int = 400) -> None:
    """Adam on one transcript until every policy token has a probability of at least 0.9."""
    ids, labels = (torch.tensor([example[name]]) for name in ("input_ids", "labels"))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        logits = model(input_ids=ids).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="none", ignore_index=-100)
        if losses.max() < 0.1:
            break
        optimizer.zero_grad()
        losses.sum().div((labels >= 0).sum()).backward()
        optimizer.step()
    model.eval()


def check(played: Played) -> None:
    """Assert what the top of this file says."""
    trajectory, codec = played.trajectory, played.codec
    transcript: list[int] = []
    seen = list(played.seen)
    generations = []
    observations = iter(turn.observation for turn in trajectory.turns if turn.observation)
    for segment in trajectory.segments:
        if segment.source == "environment":
            assert without_control(codec, next(observations)) == codec.decode(segment.token_ids)
        if segment.source != "policy":
            transcript += segment.token_ids
            continue
        said: list[int] = []
        generations.append(0)
        while len(said) < len(segment.token_ids):
            request, generation = seen.pop(0)
            assert list(request.prefix) == [*transcript, *said]
            said += generation.token_ids
            generations[-1] += 1
        assert said == list(segment.token_ids)
        transcript += said
    assert not seen
    assert generations == list(played.case.generations)
    assert transcript == trajectory.token_ids
    texts = [text.replace(END, "") for text in played.case.said]
    assert [turn.text for turn in trajectory.turns] == texts
    assert trajectory.answer == "Skien"
    assert gap(played) < 1e-4


def gap(played: Played) -> float:
    """The largest difference, in nats, between recorded log-probs and those of one pass over the transcript."""
    ids = torch.tensor([played.trajectory.token_ids])
    with torch.no_grad():
        logprobs = played.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    chosen = logprobs.gather(-1, ids[0, 1:, None]).squeeze(-1).tolist()
    mask = played.trajectory.policy_mask[1:]
    again = [value for value, mine in zip(chosen, mask, strict=True) if mine]
    recorded = [value for segment in played.trajectory.segments for value in segment.logprobs]
    return max(abs(a - b) for a, b in zip(again, recorded, strict=True))


def without_control(codec: HFCodec, text: str) -> str:
    """``text`` without the control tokens that a chat template writes, which decode to nothing."""
    for string in sorted(codec.reserved - set(TAG_STRINGS), key=len, reverse=True):
        text = text.replace(string, "")
    return text


def show(played: Played, tokens: bool) -> None:
    codec, trajectory = played.codec, played.trajectory
    sampled = sum(trajectory.policy_mask)
    print(f"\n== {played.case.name}: {played.case.about}")
    print(
        f"   {len(trajectory.turns)} turns of {len(played.seen)} generations, {sampled} of {len(trajectory.token_ids)} "
        f"tokens sampled, log-probs within {gap(played):.1e} nats of one pass, ended by {trajectory.stop}\n"
    )
    position = 0
    for segment in trajectory.segments:
        mask = int(segment.source == "policy")
        if not tokens:
            pieces = "│".join(name(codec, token) for token in segment.token_ids)
            print(f"{mask} {segment.source:<11} {len(segment.token_ids):>4}  {pieces}")
            continue
        for offset, token in enumerate(segment.token_ids):
            value = f"{segment.logprobs[offset]:9.4f}" if segment.logprobs else " " * 9
            print(f"{position:>5} {mask} {segment.source:<11} {token:>5} {value}  {name(codec, token)}")
            position += 1


def name(codec: HFCodec, token: int) -> str:
    """A token's text with white space made visible; control tokens by name."""
    text = codec.decode([token]) or str(codec.tokenizer.convert_ids_to_tokens(token))
    return text.replace("\n", "⏎").replace(" ", "␣")


def keep(played: Played, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    played.codec.tokenizer.save_pretrained(folder)
    played.model.save_pretrained(folder)
    (folder / "trajectory.jsonl").unlink(missing_ok=True)
    with TrajectoryWriter(folder / "trajectory.jsonl") as writer:
        writer.write(ScoredTrajectory(played.trajectory, None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [case.name for case in CASES]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which; by default all: {', '.join(known)}")
    parser.add_argument("--tokens", action="store_true", help="a line for each token")
    parser.add_argument("--out", type=Path, help="folder for models and trajectories")
    options = parser.parse_args()
    if unknown := set(options.names) - set(known):
        parser.error(f"no episode {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    for case in CASES:
        if not options.names or case.name in options.names:
            played = play(case)
            check(played)
            show(played, options.tokens)
            if options.out:
                keep(played, options.out / case.name)


if __name__ == "__main__":
    main()
