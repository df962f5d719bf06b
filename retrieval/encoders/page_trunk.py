"""A small reader of page images and of text, made for two cores: one network whose tokens are letters or patches.

A text is read letter by letter. A page is cut into patches; each is read as a mixture of letters, by a classifier
whose classes are the embeddings that texts use, and a projection, which begins at zero, adds what else it looks like.
With a loss on that reading (`retrieval.training.reading`) pages and texts soon look alike to the rest: convolutions
along the line, which spell, and a transformer. Blank patches and spaces are no tokens.

It is not a pretrained vision model: it knows the letters of its own corpus, and as a rule one letter a patch. The
transformer is that of Vaswani et al. 2017 with normalisation before each part; patches are those of Dosovitskiy et al.
2021. Saved as any model of transformers; `register` makes its name known there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

MODEL_TYPE = "sleuth_pages"


class PageTrunkConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes of a trunk. ``spelling``: convolutions of width 5; ``context``: a patch sees its eight neighbours."""

    model_type = MODEL_TYPE
    vocab_size: int = 128
    hidden_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    spelling: int = 2
    patch_width: int = 8
    patch_height: int = 16
    context: bool = True
    dropout: float = 0.0
    initializer_range: float = 0.02


class PageTrunk(PreTrainedModel):  # type: ignore[misc]
    config_class = PageTrunkConfig
    base_model_prefix = "trunk"
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: PageTrunkConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.letters = nn.Embedding(config.vocab_size, size)
        self.look = PatchReader(config)
        self.kinds = nn.Embedding(2, size)
        self.place_weight = nn.Parameter(torch.tensor(0.5))
        self.spelling = nn.ModuleList(Spelling(size) for _ in range(config.spelling))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.letters

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=1.0 if module is self.letters else self.config.initializer_range)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, PatchReader):
            nn.init.zeros_(module.else_seen.weight)
        elif isinstance(module, PageTrunk):
            nn.init.constant_(module.place_weight, 0.5)

    def read(self, pixel_values: Tensor, inked: Tensor) -> Tensor:
        """The logits of each letter for each patch [pages, rows, columns, letters]; see `forward` for the inputs."""
        logits: Tensor = self.look.logits(self.look.see(pixel_values, inked), self.letters.weight)
        return logits

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor | None = None, **_: Any
    ) -> BaseModelOutput:
        """States [inputs, tokens, size], zero where ``attention_mask`` [inputs, tokens] is.

        ``pixel_values``: ink from 0 to 1 [inputs, 1, height, width], of whole patches. Their tokens, row by row, come
        before those of the text; the mask is 0 at blank ones. ``input_ids`` of patches are not looked at.
        """
        mask = attention_mask.bool()
        parts, places = [], []
        first = 0
        if pixel_values is not None:
            rows, columns = self.look.grid(pixel_values)
            first = rows * columns
            inked = mask[:, :first].unflatten(1, (rows, columns))
            seen = self.look(pixel_values, inked, self.letters.weight)
            parts.append(self._spelled(seen, inked, 1).flatten(1, 2))
            places.append(_places(rows, columns, seen.shape[-1], seen.device))
        if input_ids.shape[1] > first:
            kept = mask[:, None, first:]
            text = self.letters(input_ids[:, first:])[:, None]
            parts.append(self._spelled(text, kept, 0).flatten(1, 2))
            places.append(_places(1, kept.shape[-1], text.shape[-1], text.device))
        states = torch.cat(parts, 1) + self.place_weight * torch.cat(places, 0)
        return BaseModelOutput(last_hidden_state=self._attended(states, mask))

    def _spelled(self, states: Tensor, kept: Tensor, kind: int) -> Tensor:
        for layer in self.spelling:
            states = layer(states, kept)
        spelled: Tensor = states + self.kinds.weight[kind]
        return spelled

    def _attended(self, states: Tensor, mask: Tensor) -> Tensor:
        """The transformer over the tokens that count, packed to the left so that blank ones cost nothing."""
        longest = max(int(mask.sum(1).max()), 1)
        order = (
            mask.long().argsort(dim=1, descending=True, stable=True)[:, :longest, None].expand(-1, -1, states.shape[-1])
        )
        kept = mask.gather(1, order[..., 0])
        packed = states.gather(1, order)
        seen = kept | (~kept.any(1, keepdim=True))  # a page without ink attends to itself: softmax of nothing is NaN
        for block in self.blocks:
            packed = block(packed, seen[:, None, None, :])
        packed = self.norm(packed) * kept[..., None]
        found: Tensor = torch.zeros_like(states, dtype=packed.dtype).scatter(1, order, packed)
        return found


class PatchReader(nn.Module):
    """From patches to mixtures of letters."""

    def __init__(self, config: PageTrunkConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.patch = (config.patch_height, config.patch_width)
        self.pixels = nn.Linear(config.patch_height * config.patch_width, size)
        self.around = nn.Conv2d(size, size, 3, padding=1) if config.context else None
        self.norm = nn.LayerNorm(size)
        self.else_seen = nn.Linear(size, size, bias=False)

    def grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """Rows and columns of patches."""
        return pixel_values.shape[2] // self.patch[0], pixel_values.shape[3] // self.patch[1]

    def see(self, pixel_values: Tensor, inked: Tensor) -> Tensor:
        """What each patch looks like [pages, rows, columns, size], zero where ``inked`` [pages, rows, columns] is."""
        rows, columns = self.grid(pixel_values)
        cut = pixel_values[:, 0].unflatten(1, (rows, self.patch[0])).unflatten(3, (columns, self.patch[1]))
        patches = cut.transpose(2, 3).flatten(3).to(self.pixels.weight.dtype)
        seen = functional.gelu(self.pixels(patches)) * inked[..., None]
        if self.around is not None:
            near = self.around(seen.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            seen = (seen + functional.gelu(near)) * inked[..., None]
        normed: Tensor = self.norm(seen)
        return normed

    def logits(self, seen: Tensor, letters: Tensor) -> Tensor:
        scaled: Tensor = seen @ letters.T * seen.shape[-1] ** -0.5
        return scaled

    def forward(self, pixel_values: Tensor, inked: Tensor, letters: Tensor) -> Tensor:
        """The states of patches [pages, rows, columns, size], to be used like embeddings of ``letters``."""
        seen = self.see(pixel_values, inked)
        mixed: Tensor = self.logits(seen, letters).softmax(-1) @ letters + self.else_seen(seen)
        return mixed


class Spelling(nn.Module):
    """A residual convolution along the line, of width 5."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.near = nn.Conv2d(size, size, (1, 5), padding=(0, 2))

    def forward(self, states: Tensor, kept: Tensor) -> Tensor:
        """``states`` [inputs, rows, columns, size]; those not ``kept`` are as what lies beyond the edge."""
        normed = self.norm(states) * kept[..., None]
        near = self.near(normed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        found: Tensor = states + functional.gelu(near)
        return found


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a normalisation."""

    def __init__(self, config: PageTrunkConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads, self.dropout = config.num_attention_heads, config.dropout
        self.before_attention, self.before_mlp = nn.LayerNorm(size), nn.LayerNorm(size)
        self.q_proj, self.k_proj = nn.Linear(size, size), nn.Linear(size, size)
        self.v_proj, self.o_proj = nn.Linear(size, size), nn.Linear(size, size)
        self.up_proj, self.down_proj = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(self, states: Tensor, seen: Tensor) -> Tensor:
        """``states`` [inputs, tokens, size]; ``seen`` [inputs, 1, 1, tokens], which of them are attended to."""
        normed = self.before_attention(states)
        query, key, value = (
            project(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout)
        states = states + self.o_proj(mixed.transpose(1, 2).flatten(2))
        wide = functional.gelu(self.up_proj(self.before_mlp(states)))
        found: Tensor = states + functional.dropout(self.down_proj(wide), self.dropout, self.training)
        return found


def _places(rows: int, columns: int, size: int, device: torch.device) -> Tensor:
    """Sinusoids [rows * columns, size]: a half for the column, a half for the row."""
    half = size // 2
    rates = 100.0 ** (-torch.arange(0, half, 2, device=device) / half)

    def waves(count: int, width: int) -> Tensor:
        angles = torch.arange(count, device=device)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], 1)[:, :width]

    across = waves(columns, half).expand(rows, -1, -1)
    down = waves(rows, size - half)[:, None].expand(-1, columns, -1)
    return torch.cat([across, down], -1).flatten(0, 1)


def register() -> None:
    """Make the trunk known to transformers, so that anything of theirs loads it by its folder."""
    from retrieval.encoders.page_processor import register_processor

    AutoConfig.register(MODEL_TYPE, PageTrunkConfig, exist_ok=True)
    AutoModel.register(PageTrunkConfig, PageTrunk, exist_ok=True)
    register_processor(PageTrunkConfig)
