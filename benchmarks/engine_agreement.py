"""How far vLLM's log-probs are from those of transformers on the same tokens, in nats, as weights change.

    python benchmarks/engine_agreement.py MODEL [--rows 8] [--tokens 64] [--rate 1e-4]

The engine samples two turns of every row, with inserted tokens between them; transformers then reads each whole
transcript at once. First with the weights as they come; after an update of every weight; after an adapter; after
another adapter; with whole weights again. An update is as large as a step of AdamW at ``--rate``. Beside each gap
stands how far the engine is from the weights before the update: a sync that did nothing would show itself there.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from peft import get_peft_model

from agent.config import PolicySettings
from agent.policies.adapters import peft_config
from agent.policies.config import VllmSettings
from agent.policies.loading import load_policy_model
from agent.policies.probe import probe_tokens
from agent.policies.vllm_policy import open_vllm_policy
from agent.policies.weights import LiveWeights
from hub.config import LoraSettings
from sleuth.protocols import Policy
from sleuth.types import Request, Sampling

LORA = LoraSettings(r=16, alpha=32)
INSERTED = 40


class Transcript:
    """One row: its tokens, which of them were sampled, and the engine's log-probs of those."""

    def __init__(self, prompt: list[int]) -> None:
        self.tokens = prompt
        self.places: list[int] = []
        self.logprobs: list[float] = []

    def sampled(self, tokens: tuple[int, ...], logprobs: tuple[float, ...]) -> None:
        self.places += range(len(self.tokens), len(self.tokens) + len(tokens))
        self.tokens = [*self.tokens, *tokens]
        self.logprobs += logprobs


def play(policy: Policy, prompts: list[list[int]], tokens: int, seed: int, words: int = 20_000) -> list[Transcript]:
    """Two turns of every prompt; ``words``: inserted tokens are below that."""
    rng = np.random.default_rng(seed)
    rows = [Transcript(list(prompt)) for prompt in prompts]
    for turn in range(2):
        asked = [Request(f"{i}#0", row.tokens, tokens, 1000 * seed + 100 * turn + i) for i, row in enumerate(rows)]
        for row, done in zip(rows, policy.generate(asked, Sampling(1.0)), strict=True):
            row.sampled(done.token_ids, done.logprobs)
            row.tokens += rng.integers(10, words, INSERTED).tolist()
    return rows


def differences(model: Any, rows: list[Transcript]) -> torch.Tensor:
    """The model's log-prob less the sampler's of each sampled token [tokens], in nats."""
    found = []
    for row in rows:
        ids = torch.tensor([row.tokens], device=model.device)
        with torch.no_grad():
            logps = model(ids).logits[0, :-1].float().log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        found.append(logps.cpu()[torch.tensor(row.places) - 1] - torch.tensor(row.logprobs))
    return torch.cat(found)


def gap(model: Any, rows: list[Transcript]) -> tuple[float, float, int]:
    """Largest and mean difference over the sampled tokens, and how many these are."""
    found = differences(model, rows).abs()
    return found.max().item(), found.mean().item(), len(found)


def step(parameters: list[torch.nn.Parameter], rate: float, seed: int) -> None:
    """Move every number by ``rate``, up or down."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(rate * torch.randn(parameter.shape, generator=generator).sign().to(parameter.device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-4)
    options = parser.parse_args()
    vllm = VllmSettings(block_size=32, max_tokens=1024)
    settings = PolicySettings(model=options.model, max_rows=options.rows, vllm=vllm)
    policy, codec = open_vllm_policy(settings, options.model, LORA)
    model, _ = load_policy_model(settings, options.model)
    old, _ = load_policy_model(settings, options.model)
    prompts = [
        codec.encode(f"Question {i}: who wrote the book, and where were they born?") for i in range(options.rows)
    ]
    print(f"{'':34}{'largest gap':>12}{'mean gap':>11}{'tokens':>8}{'to the weights before':>24}")

    def show(title: str, before: Any, seed: int) -> None:
        rows = play(policy, prompts, options.tokens, seed)
        largest, mean, count = gap(model, rows)
        other = f"{gap(before, rows)[0]:.2e}" if before is not None else "-"
        print(f"{title:34}{largest:12.2e}{mean:11.1e}{count:8}{other:>24}", flush=True)

    show("as it comes", None, 0)
    step(list(model.parameters()), options.rate, 1)
    policy.load(LiveWeights(1, model, probe_tokens(codec)))
    show("every weight moved", old, 1)
    old.load_state_dict(model.state_dict())
    model = get_peft_model(model, peft_config(LORA))
    for version in (2, 3):
        step([p for n, p in model.named_parameters() if "lora_" in n], 10 * options.rate, version)
        policy.load(LiveWeights(version, model, probe_tokens(codec)))
        show(f"adapter, version {version}", old, version)
    model = model.unload()
    policy.load(LiveWeights(4, model, probe_tokens(codec)))
    show("whole weights again", None, 4)
    policy.close()


if __name__ == "__main__":
    main()
