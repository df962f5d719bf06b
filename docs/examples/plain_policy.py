"""A policy backend of one's own that can be trained: no batches, no cache, and weights that follow the trainer's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from agent.codec import HFCodec
from agent.config import PolicySettings
from agent.policies.loading import load_policy_model
from agent.policies.sampler import pick, uniforms
from agent.policies.weights import put_into
from sleuth.protocols import OnToken, Weights
from sleuth.types import FinishReason, Generation, Request, Sampling


class PlainPolicy:
    """Reads the whole prefix again for every token."""

    trainable = True

    def __init__(self, settings: PolicySettings, codec: HFCodec) -> None:
        self._model, _ = load_policy_model(settings, str(settings.model))
        self._model.eval()
        self._codec = codec
        self.version = 0

    def load(self, weights: Weights) -> None:
        put_into(self._model, weights)
        self.version = weights.version

    def release(self, episodes: Iterable[str]) -> None:
        """Nothing is kept by episode."""

    @torch.no_grad()
    def generate(
        self, requests: Sequence[Request], sampling: Sampling, on_token: OnToken | None = None
    ) -> list[Generation]:
        return [self._one(request, sampling, on_token) for request in requests]

    def _one(self, request: Request, sampling: Sampling, on_token: OnToken | None) -> Generation:
        tokens: list[int] = []
        logprobs: list[float] = []
        for draw in torch.from_numpy(uniforms([request.seed], request.max_new_tokens)[0]):
            ids = torch.tensor([[*request.prefix, *tokens]], device=self._model.device)
            token, logprob = (x.item() for x in pick(self._model(ids).logits[:, -1], draw[None], sampling))
            tokens.append(int(token))
            logprobs.append(logprob)
            if on_token:
                on_token(request.episode, int(token), logprob)
            if reason := self._end(tokens, sampling.stop):
                return Generation(tuple(tokens), tuple(logprobs), reason, self.version)
        return Generation(tuple(tokens), tuple(logprobs), "length", self.version)

    def _end(self, tokens: Sequence[int], stop: tuple[str, ...]) -> FinishReason | None:
        stopped = any(s in self._codec.decode(tokens) for s in stop)
        return "stop" if stopped else "eos" if tokens[-1] == self._codec.eos_token_id else None
