"""The policy on transformers: one batch of rows that stop independently, caches kept across turns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from agent.policies.kept_caches import KeptCaches
from agent.policies.kv_cache import RowCache, keeps_rows
from agent.policies.row_check import check_rows
from agent.policies.sampler import pick, uniforms
from agent.policies.weights import put_into
from agent.vision import Pictures
from hub.context import context_length
from sleuth.errors import PolicyError
from sleuth.protocols import OnToken, TextCodec, Weights
from sleuth.types import FinishReason, Generation, Request, Sampling

_TAIL = 16
"""Number of tokens decoded to look for a stop string; tags are far shorter."""


@dataclass(slots=True)
class _Row:
    """The tokens of one request so far."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: FinishReason | None = None


class TransformersPolicy:
    """Generates with a causal language model in this process: its own, or the one being trained.

    ``max_rows`` bounds the batch, not the result. ``cache_bytes`` bounds what is kept between turns; None: no bound, 0:
    nothing is. Only with full attention is anything kept; other models encode the prefix anew each turn. Raises
    PolicyError for a model whose rows cannot be batched.
    """

    trainable = True

    def __init__(
        self,
        model: Any,
        codec: TextCodec,
        *,
        max_rows: int = 64,
        keep_cache: bool = True,
        cache_bytes: int | None = None,
    ) -> None:
        self.model = model
        self._codec = codec
        self._version = 0
        self._max_rows = max_rows
        attends_in_full = keeps_rows(model)
        if not attends_in_full:
            check_rows(model, codec)
        self._pictures: Pictures | None = getattr(codec, "pictures", None)
        # what a new turn shows is told by the whole transcript
        self._keep_cache = keep_cache and cache_bytes != 0 and attends_in_full and self._pictures is None
        self._kept = KeptCaches(cache_bytes)
        self.context = context_length(model.config)
        self._ends = _end_tokens(model, codec)
        self._closers: dict[tuple[str, ...], frozenset[int]] = {}

    @property
    def version(self) -> int:
        return self._version

    @property
    def kept_bytes(self) -> int:
        """Bytes of keys and values kept for the next turn."""
        return self._kept.nbytes

    def load(self, weights: Weights) -> None:
        """Live weights are used as they are; weights sent from elsewhere are copied into the model."""
        if weights.module is None:
            put_into(self.model, weights)
        else:
            self.model = weights.module
        self._version = weights.version
        self._kept.clear()

    def release(self, episodes: Iterable[str]) -> None:
        self._kept.release(episodes)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, on_token: OnToken | None = None
    ) -> list[Generation]:
        self._refuse_beyond_context(requests)
        if self._pictures is not None:
            for request in requests:
                self._pictures.remember(request.prefix, request.images)
        done: dict[str, Generation] = {}
        with torch.no_grad(), _evaluating(self.model):
            for session, batch in self._assign(requests):
                longest = session.columns_after([r.prefix for r in batch], max(r.max_new_tokens for r in batch))
                self._kept.make_room(len(batch), longest)
                with self._showing(batch):
                    rows = self._decode(session, batch, sampling, on_token)
                for row in rows:
                    assert row.reason is not None
                    done[row.request.episode] = Generation(
                        tuple(row.tokens), tuple(row.logprobs), row.reason, self.version
                    )
                if self._keep_cache:
                    self._kept.keep(session)
        return [done[request.episode] for request in requests]

    def _showing(self, batch: Sequence[Request]) -> AbstractContextManager[None]:
        return nullcontext() if self._pictures is None else self._pictures.showing([r.images for r in batch])

    def _refuse_beyond_context(self, requests: Sequence[Request]) -> None:
        longest = max((len(r.prefix) + r.max_new_tokens for r in requests), default=0)
        if self.context is not None and longest > self.context:
            raise PolicyError(
                f"a transcript of up to {longest} tokens is beyond the {self.context} positions of the model",
                f"set environment.total_tokens to {self.context} or less",
            )

    def _assign(self, requests: Sequence[Request]) -> Iterator[tuple[RowCache, list[Request]]]:
        """Each request with the cache that has the start of its prefix, or with a new one."""
        waiting = {request.episode: request for request in requests}
        for session in self._kept.once():
            rows = [
                row
                for row, episode in enumerate(session.episodes)
                if episode in waiting and session.fits(row, waiting[episode].prefix)
            ]
            if rows:
                session.select(rows)
                yield session, [waiting.pop(episode) for episode in session.episodes]
        fresh = sorted(waiting.values(), key=lambda request: len(request.prefix))
        for start in range(0, len(fresh), self._max_rows):
            batch = fresh[start : start + self._max_rows]
            yield RowCache([r.episode for r in batch], self.model), batch

    def _decode(
        self, session: RowCache, requests: Sequence[Request], sampling: Sampling, on_token: OnToken | None
    ) -> list[_Row]:
        """Sample every row to a stop string, EOS or its budget."""
        rows = [_Row(request) for request in requests]
        budget = max(request.max_new_tokens for request in requests)
        draws = torch.from_numpy(uniforms([request.seed for request in requests], budget))
        feed: list[list[int]] = [list(r.prefix[len(held) :]) for r, held in zip(requests, session.tokens, strict=True)]
        for step in range(budget):
            logits = session.feed(self.model, feed, self._codec.pad_token_id)
            tokens, logprobs = pick(logits, draws[:, step].to(logits.device), sampling)
            feed = [[] for _ in rows]
            for index, (row, token, logprob) in enumerate(zip(rows, tokens.tolist(), logprobs.tolist(), strict=True)):
                if row.reason is None:
                    self._take(row, token, logprob, sampling.stop, on_token)
                    feed[index] = [token] if row.reason is None else []
            if not any(feed):
                break
        return rows

    def _take(self, row: _Row, token: int, logprob: float, stop: tuple[str, ...], on_token: OnToken | None) -> None:
        row.tokens.append(token)
        row.logprobs.append(logprob)
        if on_token:
            on_token(row.request.episode, token, logprob)
        if token in self._ends:
            row.reason = "eos"
        elif token in self._closing(stop) and self._stopped(row.tokens, stop):
            row.reason = "stop"
        elif len(row.tokens) >= row.request.max_new_tokens:
            row.reason = "length"

    def _stopped(self, tokens: Sequence[int], stop: tuple[str, ...]) -> bool:
        tail = self._codec.decode(tokens[-_TAIL:])
        return any(s in tail for s in stop)

    def _closing(self, stop: tuple[str, ...]) -> frozenset[int]:
        """Tokens whose text contains the last character of a stop string: only they can complete one."""
        if stop not in self._closers:
            last = {s[-1] for s in stop}
            size = self.model.get_input_embeddings().num_embeddings
            self._closers[stop] = frozenset(t for t in range(size) if last & set(self._codec.decode([t])))
        return self._closers[stop]


def _end_tokens(model: Any, codec: TextCodec) -> frozenset[int]:
    named = model.generation_config.eos_token_id if model.generation_config else None
    more = named if isinstance(named, list) else [] if named is None else [named]
    return frozenset({*codec.end_token_ids, *more})


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """No dropout while sampling; training mode is restored."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
