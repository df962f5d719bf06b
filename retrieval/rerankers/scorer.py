"""Scores pairs of query and passage with a model, and with several models together."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from sentence_transformers import CrossEncoder

from retrieval.rerankers.loading import is_asked, load_reranker, prompt_of
from retrieval.rerankers.templates import TemplateName
from sleuth.artifacts import fingerprint_of

Pair = tuple[str, str]


class PairScorer(Protocol):
    """Scores (query, passage) pairs independently."""

    @property
    def fingerprint(self) -> str: ...

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """One score per pair, in order; higher is better."""
        ...


class CrossEncoderScorer:
    """A sentence-transformers CrossEncoder with one label, from a folder or the hub.

    Scores are its logits: an activation such as a sigmoid would turn close scores into ties. A language model's are
    ``logit(yes) - logit(no)``.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        batch_size: int = 32,
        max_tokens: int | None = None,
        dtype: str | None = None,
        device: str | None = None,
        template: TemplateName | None = None,
        instruction: str | None = None,
    ) -> None:
        self._model = load_reranker(
            model, template=template, instruction=instruction, max_tokens=max_tokens, dtype=dtype, device=device
        )
        self._batch_size = batch_size
        self._fingerprint = _identify(self._model)
        self._lock = threading.Lock()  # fast tokenizers do not allow two threads at once

    @property
    def fingerprint(self) -> str:
        """Digest of the weights, the maximum length and how a language model is asked."""
        return self._fingerprint

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        with self._lock:
            return score_pairs(self._model, pairs, self._batch_size)


class MeanScorer:
    """The mean of several models' scores, as an ensemble of teachers (Hofstätter et al. 2020)."""

    def __init__(self, scorers: Sequence[PairScorer]) -> None:
        if not scorers:
            raise ValueError("a mean of no scorers")
        self._scorers = scorers

    @property
    def fingerprint(self) -> str:
        return fingerprint_of({"mean": [scorer.fingerprint for scorer in self._scorers]})

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        found = [scorer.score(pairs) for scorer in self._scorers]
        return [sum(scores) / len(scores) for scores in zip(*found, strict=True)]


def score_pairs(model: CrossEncoder, pairs: Sequence[Pair], batch_size: int) -> list[float]:
    """The logits of ``pairs``; the model sorts them by length, so that batches need little padding."""
    if not pairs:
        return []
    clean = cleaner(model)
    scores = model.predict(
        [(clean(query), clean(text)) for query, text in pairs],
        batch_size=batch_size,
        activation_fn=torch.nn.Identity(),
        show_progress_bar=False,
    )
    return [float(score) for score in scores.reshape(-1)]


def cleaner(model: CrossEncoder) -> Callable[[str], str]:
    """What makes a text safe to read: lone surrogates are replaced, and a passage cannot write special tokens."""
    marks = sorted({mark for mark in _marks(model.tokenizer) if len(mark) > 1}, key=len, reverse=True)

    def clean(text: str) -> str:
        made = text.encode("utf-8", "replace").decode("utf-8")
        for mark in marks:
            if mark in made:
                made = made.replace(mark, f"{mark[0]} {mark[1:]}")
        return made

    return clean


def _marks(tokenizer: Any) -> list[str]:
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return [*tokenizer.all_special_tokens, *(str(token) for token in added)]


def _identify(model: CrossEncoder) -> str:
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().view(-1).float().numpy().tobytes())
    parts: dict[str, Any] = {"weights": weights.hexdigest(), "max_length": model.max_seq_length}
    if is_asked(model):
        heads = [repr(module) for module in list(model.children())[1:]]
        parts |= {"template": model.tokenizer.chat_template, "instruction": prompt_of(model), "heads": heads}
    return fingerprint_of(parts)
