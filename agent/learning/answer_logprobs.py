"""How likely the model that is being trained would give an accepted answer at a point of a transcript."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from agent.learning.credit.turn_scores import AnswerLogprobs
from agent.policies.kv_cache import is_recurrent
from sleuth.errors import ConfigError
from sleuth.protocols import Environment, TextCodec

_Pair = tuple[tuple[int, ...], str]
_TAIL = 16
"""Number of tokens decoded to see how a transcript ends."""


class AnswerReader:
    """Writes an answer as the policy would, after the environment's ``answer_opening``, and reads its log-probs.

    Only the answer's own tokens count, not the tags around it. ``rows`` bounds a batch. At temperature 1, whatever the
    rollouts are sampled at. Raises ConfigError for an environment that does not say how an answer begins.
    """

    def __init__(self, codec: TextCodec, environment: Environment, rows: int) -> None:
        opening = getattr(environment, "answer_opening", None)
        if not callable(opening):
            raise ConfigError(
                f"grpo.credit.score information_gain: {type(environment).__name__} does not say how an answer begins",
                "give it a method answer_opening(transcript), or choose another score",
            )
        self._codec = codec
        self._opening: Callable[[str], str] = opening
        self._rows = rows

    def of(self, model: Any) -> AnswerLogprobs:
        """Asks ``model``, whose weights must be whole for as long as it is asked."""
        return lambda pairs: self._read(model, pairs)

    def _read(self, model: Any, pairs: Sequence[_Pair]) -> list[float | None]:
        openings = [self._opening(self._codec.decode(transcript[-_TAIL:])) for transcript, _ in pairs]
        # The space after an opening goes with the answer: a tokenizer may join it to the first word.
        spaces = [opening[len(opening.rstrip()) :] for opening in openings]
        golds = [self._codec.encode(space + answer) for space, (_, answer) in zip(spaces, pairs, strict=True)]
        starts = [self._codec.encode(opening.rstrip(), trusted=True) for opening in openings]
        rows = [
            ((*transcript, *start), gold) for (transcript, _), start, gold in zip(pairs, starts, golds, strict=True)
        ]
        return mean_logprobs_of(model, rows, self._rows)


@torch.no_grad()
def mean_logprobs_of(
    model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch: int
) -> list[float | None]:
    """The mean log-prob, in nats, of the tokens of each text after its prefix; None for an empty text.

    ``batch`` bounds the rows of a forward pass.
    """
    found: list[float | None] = [None] * len(pairs)
    filled = (i for i, (_, text) in enumerate(pairs) if text)
    order = sorted(filled, key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    left = not is_recurrent(model)  # a recurrent layer may take padding before a row for tokens
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            rows = [[*pairs[i][0], *pairs[i][1]] for i in places]
            values = _mean_logprobs(model, rows, [len(pairs[i][1]) for i in places], left=left)
            for place, value in zip(places, values, strict=True):
                found[place] = value
    finally:
        model.train(training)
    return found


def _mean_logprobs(model: Any, rows: Sequence[Sequence[int]], counts: Sequence[int], *, left: bool) -> list[float]:
    """The mean log-prob of the last ``counts`` tokens of each row, in nats; ``left``: rows are padded on the left."""
    width = max(map(len, rows))
    padded = [pad(torch.tensor(row), (width - len(row), 0) if left else (0, width - len(row))) for row in rows]
    ids = torch.stack(padded).to(model.device)
    lengths, read = (torch.tensor(of, device=ids.device)[:, None] for of in (list(map(len, rows)), list(counts)))
    ends = torch.full_like(lengths, width) if left else lengths
    columns = torch.arange(width, device=ids.device)
    mask = ((columns >= ends - lengths) & (columns < ends)).long()
    first = int((ends - read).min())  # the first column that is read
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        use_cache=False,
        logits_to_keep=width - first + 1,
    ).logits[:, -(width - first + 1) : -1]
    logps = torch.log_softmax(logits.float(), dim=-1).gather(-1, ids[:, first:, None]).squeeze(-1)
    chosen = ((columns >= ends - read) & (columns < ends))[:, first:]
    values: list[float] = (torch.where(chosen, logps, 0.0).sum(-1) / chosen.sum(-1)).tolist()
    return values
