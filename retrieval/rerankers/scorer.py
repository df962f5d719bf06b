"""Scores pairs of query and passage with a model, and with several models together."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from sentence_transformers import CrossEncoder

from retrieval.instructed import by_instruction
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


@runtime_checkable
class InstructedScorer(PairScorer, Protocol):
    """A scorer that may be told, pair by pair, what counts as relevant."""

    @property
    def takes_instructions(self) -> bool: ...

    def score(self, pairs: Sequence[Pair], instructions: Sequence[str] = ()) -> list[float]:
        """``instructions``: one a pair, "" for the model's own; none at all: the model's own for every pair."""
        ...


def takes_instructions(scorer: PairScorer) -> bool:
    return isinstance(scorer, InstructedScorer) and scorer.takes_instructions


def score_each(scorer: PairScorer, pairs: Sequence[Pair], instructions: Sequence[str]) -> list[float]:
    """The scores of ``pairs``, each with its own instruction where the scorer takes any."""
    return scorer.score(pairs, instructions) if isinstance(scorer, InstructedScorer) else scorer.score(pairs)


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

    @property
    def takes_instructions(self) -> bool:
        """Whether it is a language model, which is asked."""
        return is_asked(self._model)

    def score(self, pairs: Sequence[Pair], instructions: Sequence[str] = ()) -> list[float]:
        with self._lock:
            return score_pairs(self._model, pairs, self._batch_size, instructions)


class MeanScorer:
    """The mean of several models' scores, as an ensemble of teachers (Hofstätter et al. 2020)."""

    def __init__(self, scorers: Sequence[PairScorer]) -> None:
        if not scorers:
            raise ValueError("a mean of no scorers")
        self._scorers = scorers

    @property
    def fingerprint(self) -> str:
        return fingerprint_of({"mean": [scorer.fingerprint for scorer in self._scorers]})

    @property
    def takes_instructions(self) -> bool:
        return any(map(takes_instructions, self._scorers))

    def score(self, pairs: Sequence[Pair], instructions: Sequence[str] = ()) -> list[float]:
        found = [score_each(scorer, pairs, instructions) for scorer in self._scorers]
        return [sum(scores) / len(scores) for scores in zip(*found, strict=True)]


def score_pairs(
    model: CrossEncoder, pairs: Sequence[Pair], batch_size: int, instructions: Sequence[str] = ()
) -> list[float]:
    """The logits of ``pairs``; the model sorts them by length, so that batches need little padding.

    ``instructions`` as for `InstructedScorer`; a model that is not asked reads none.
    """
    clean = cleaner(model)
    found = [0.0] * len(pairs)
    for instruction, places in asked_together(model, len(pairs), instructions).items():
        scores = model.predict(
            [(clean(pairs[place][0]), clean(pairs[place][1])) for place in places],
            prompt=prompt_with(model, instruction),
            batch_size=batch_size,
            activation_fn=torch.nn.Identity(),
            show_progress_bar=False,
        )
        for place, score in zip(places, scores.reshape(-1), strict=True):
            found[place] = float(score)
    return found


def asked_together(model: CrossEncoder, pairs: int, instructions: Sequence[str]) -> dict[str, list[int]]:
    """The places of the pairs that ``model`` reads with one instruction, for each."""
    return by_instruction(instructions if instructions and is_asked(model) else [""] * pairs)


def prompt_with(model: CrossEncoder, instruction: str) -> str | None:
    """``instruction``, or the model's own where it is empty; None: that of its template."""
    return cleaner(model)(instruction) if instruction else prompt_of(model)


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
