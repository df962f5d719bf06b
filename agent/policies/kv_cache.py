"""Key-value caches kept between turns: rows of episodes in one batch, with holes masked out.

In each turn, rows get different numbers of new tokens. They are appended as columns for all rows, aligned to the
right; columns that a row does not use are holes in its mask. Position ids are explicit, so a hole costs memory and
time but does not change results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, LinearAttentionCacheLayerMixin

_SLACK = 64
"""Columns allocated in advance, so that a decoding step writes in place instead of copying the cache."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer over a larger buffer; ``keys`` and ``values`` are views of its used part."""

    keys: torch.Tensor
    values: torch.Tensor
    _buffers: tuple[torch.Tensor, torch.Tensor]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._hold(key_states[..., :0, :], value_states[..., :0, :], room=key_states.shape[-2])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if end > self._buffers[0].shape[-2]:
            self._hold(self.keys, self.values, room=end - start)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = states
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)
        return self.keys, self.values

    @property
    def allocated(self) -> int:
        """Columns there is room for; ``keys`` and ``values`` use a part."""
        return self._buffers[0].shape[-2] if self.is_initialized else 0

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers) if self.is_initialized else 0

    def replace(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Replace the states by these [rows, heads, columns, head_dim]."""
        self._hold(keys, values, room=0)

    def _hold(self, keys: torch.Tensor, values: torch.Tensor, room: int) -> None:
        used = keys.shape[-2]
        grown = []
        for states in (keys, values):
            buffer = states.new_zeros((*states.shape[:2], used + room + _SLACK, states.shape[-1]))
            buffer[..., :used, :] = states
            grown.append(buffer)
        self._buffers = (grown[0], grown[1])
        self.keys, self.values = (buffer[..., :used, :] for buffer in self._buffers)


class RowCache:
    """The cached tokens of some episodes; row i of every tensor belongs to ``episodes[i]``.

    ``mask`` is [rows, columns], 1 if the column is a token of that row. ``tokens[i]`` are the
    tokens whose states row i holds, in order.
    """

    def __init__(self, episodes: Sequence[str], model: Any) -> None:
        self.episodes = list(episodes)
        self.tokens: list[list[int]] = [[] for _ in episodes]
        self.cache = Cache(layers=cache_layers(model))
        self.mask = torch.zeros((len(episodes), 0), dtype=torch.long, device=model.device)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows' keys and values; of layers of other kinds nothing, as they are never kept."""
        return sum(layer.nbytes for layer in self.cache.layers if isinstance(layer, GrowingLayer))

    @property
    def allocated(self) -> int:
        """Columns there is room for."""
        return max((layer.allocated for layer in self.cache.layers if isinstance(layer, GrowingLayer)), default=0)

    def columns_after(self, prefixes: Sequence[Sequence[int]], budget: int) -> int:
        """The columns allocated once each row has been given the rest of its prefix and ``budget`` tokens."""
        new = max(len(prefix) - len(held) for prefix, held in zip(prefixes, self.tokens, strict=True))
        return int(self.mask.shape[1]) + new + budget + _SLACK

    def fits(self, row: int, prefix: Sequence[int]) -> bool:
        """Whether ``prefix`` extends the tokens of row ``row`` by at least one."""
        held = self.tokens[row]
        return len(prefix) > len(held) and list(prefix[: len(held)]) == held

    def feed(self, model: Any, new: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
        """Append ``new[i]`` to row i (it may be empty) and return the last column's logits [rows, vocabulary].

        Logits of a row without new tokens are meaningless.
        """
        width = max(len(tokens) for tokens in new)
        ids = torch.tensor([[pad] * (width - len(t)) + list(t) for t in new], device=self.mask.device)
        fresh = torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in new], device=self.mask.device)
        held = torch.tensor([len(t) for t in self.tokens], device=self.mask.device)
        positions = (held[:, None] + fresh.cumsum(-1) - 1).clamp(min=0)
        self.mask = torch.cat([self.mask, fresh], dim=1)
        logits: torch.Tensor = model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        for row, tokens in zip(self.tokens, new, strict=True):
            row.extend(tokens)
        return logits

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order, and remove columns that are holes in all of them."""
        index = torch.tensor(list(rows), device=self.mask.device)
        self.episodes = [self.episodes[row] for row in rows]
        self.tokens = [self.tokens[row] for row in rows]
        mask = self.mask[index]
        width = max((len(tokens) for tokens in self.tokens), default=0)
        # A stable sort by mask moves every row's own columns to the right without changing their order.
        columns = mask.argsort(dim=1, stable=True)[:, mask.shape[1] - width :]
        self.mask = mask.gather(1, columns)
        for layer in self.cache.layers:
            states = (layer.keys[index], layer.values[index])
            where = columns[:, None, :, None].expand(-1, states[0].shape[1], -1, states[0].shape[3])
            layer.replace(*(s.gather(2, where) for s in states))


def cache_layers(model: Any) -> list[Any]:
    """transformers' own cache layers for ``model``, except that those of full attention grow in place.

    Only the model's own kinds will do: a recurrent layer asks its cache for a state, not for keys.
    """
    layers = DynamicCache(config=model.config).layers
    return [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in layers]


def is_recurrent(model: Any) -> bool:
    """Whether a layer carries a state from token to token (state space, linear attention, short convolution)."""
    layers = cache_layers(model)
    return bool(model._is_stateful) or any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


def keeps_rows(model: Any) -> bool:
    """Whether all layers have full attention, so that the cache may have holes.

    A window counts columns, holes included, and a recurrent state cannot be rid of the padding it has read.
    """
    return not is_recurrent(model) and all(isinstance(layer, GrowingLayer) for layer in cache_layers(model))
