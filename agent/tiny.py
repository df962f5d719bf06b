"""A policy of about a million parameters with its own tokenizer, to be trained from scratch in minutes.

The initialisation contains a hand-wired *induction circuit*, attention heads that together copy. A head of layer 0
attends to the previous token and writes it into a subspace of the residual stream; two heads of layer 1 match that
subspace with the current token, so they attend to what followed its last occurrence; value and output matrices are
transposes of each other, so that the attended token is also predicted. All weights are then trained. Networks of this
size with random initialisation did not learn to copy names within the same budget; what to search, when to stop and
which fact to copy is learned.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agent.tiny_config import TinySettings
from sleuth.artifacts import atomic_folder, write_manifest

if TYPE_CHECKING:
    from torch import Tensor

KIND = "policy"
PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
TAGS = tuple(f"<{slash}{name}>" for name in ("think", "search", "information", "answer") for slash in ("", "/"))
CALL_TAGS = tuple(f"<{slash}{name}>" for name in ("tool_call", "tool_response") for slash in ("", "/"))
CALL_PIECES = ('{"name": "search", "arguments": {"query": "', '"}}')
"""What stands around the query of a search in the Hermes form: two tokens, so that there is no JSON to learn."""
CALL_TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool['function']['name'] }}\n{% endfor %}"
    "{% for m in messages %}{% if m['role'] == 'tool' %}<tool_response>\n{{ m['content'] }}\n</tool_response>\n"
    "{% else %}{{ m['content'] }}{% if m['role'] == 'assistant' %}<eos>\n{% endif %}{% endif %}{% endfor %}"
)
"""Chat template of a tiny policy that calls tools, of which it is told the names."""
OWN_WORDS = ("Question", "nothing", "found", "search", "or", "answer", "now")
"""Whole words of the minimal prompt style and its hints; other unknown words are spelt in characters."""
NEWLINE = "¶"
"""Represents a line break inside the tokenizer; decoded text never contains it."""
_CERTAIN = 400.0
"""Attention score of the previous token in the previous-token head; other tokens score lower, at the default size by at
least 17 %. Training does not undo so large a margin. With 40 it did, and rounding of two nearly equal scores moved
log-probs of the next token by up to 2.4e-4 between sampler and trainer."""


def build_tiny_policy(
    folder: str | Path,
    vocabulary: Sequence[str],
    settings: TinySettings,
    seed: int,
    *,
    calls: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a tokenizer over ``vocabulary`` and an untrained model to ``folder``.

    ``vocabulary`` contains words and word pieces (``##`` marks one inside a word). ``calls``: it is to search in the
    Hermes form. Raises ArtifactError if the folder exists and may not be overwritten.
    """
    tokenizer = make_tokenizer(vocabulary, settings.max_length, calls=calls)
    model = make_model(len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id, settings, seed)
    with atomic_folder(folder, overwrite=overwrite) as out:
        tokenizer.save_pretrained(out)
        model.save_pretrained(out)
        write_manifest(out, KIND, {"settings": settings.model_dump(mode="json"), "seed": seed, "trained": False})


def make_tokenizer(vocabulary: Sequence[str], max_length: int, *, calls: bool = False) -> PreTrainedTokenizerFast:
    """WordPiece over ``vocabulary``, with single characters for other ASCII text.

    The protocol's tags are added tokens but not special ones, so decoding keeps them. ``calls``: those of the Hermes
    form too, and a chat template with tool messages.
    """
    tags = (*TAGS, *CALL_TAGS, *CALL_PIECES) if calls else TAGS
    characters = [c for c in string.printable if not c.isspace()]
    fallback = [*characters, *(f"##{c}" for c in characters if c.isalnum() or c == "_")]
    pieces = list(dict.fromkeys([PAD, EOS, UNKNOWN, NEWLINE, *OWN_WORDS, *vocabulary, *fallback]))
    core = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token=UNKNOWN))
    core.normalizer = normalizers.Replace("\n", f" {NEWLINE} ")
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.Sequence([decoders.Replace(NEWLINE, "\n"), decoders.WordPiece(cleanup=True)])
    core.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in tags])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=max_length,
        **({"chat_template": CALL_TEMPLATE} if calls else {}),
    )


def make_model(size: int, pad: int, eos: int, settings: TinySettings, seed: int) -> LlamaForCausalLM:
    """A Llama network with ``size`` tokens, initialised as described at the top of this file.

    Llama with attention biases equals Qwen2 up to one bias; ``AutoTokenizer`` would replace the tokenizer of a
    ``qwen2`` folder by Qwen2's own.
    """
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.max_length,
        attention_bias=True,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
        use_cache=True,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = pad, eos
    with torch.no_grad():
        _initialise(model, torch.Generator().manual_seed(seed))
    return model


def _initialise(model: LlamaForCausalLM, rng: torch.Generator) -> None:
    size, heads = model.config.hidden_size, model.config.num_attention_heads
    head_size = size // heads
    model.model.embed_tokens.weight.normal_(0, 0.1, generator=rng)
    for index, layer in enumerate(model.model.layers):
        for matrix in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            matrix.weight.normal_(0, 0.02, generator=rng)
        attention = layer.self_attn
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            projection.bias.zero_()
        look = _orthogonal(size, rng) * (0.1 if index == 0 else 1.0)
        attention.q_proj.weight.copy_(look)
        attention.k_proj.weight.copy_(look)
        value = _orthogonal(size, rng)
        attention.v_proj.weight.copy_(0.3 * value)
        attention.o_proj.weight.copy_(0.3 * value.T)
    _wire_induction(model, head_size, rng)


def _wire_induction(model: LlamaForCausalLM, head_size: int, rng: torch.Generator) -> None:
    """Head 0 of layer 0 finds the previous token; heads 0 and 2 of layer 1 find what followed the current one."""
    first, second = (layer.self_attn for layer in list(model.model.layers)[:2])
    head = slice(0, head_size)
    half = head_size // 2
    theta = model.config.rope_parameters["rope_theta"]
    angles = theta ** (-torch.arange(half) / half)
    gains = torch.exp(-torch.arange(half) / 3)
    gains = torch.sqrt(_CERTAIN * math.sqrt(head_size) * gains / gains.sum())
    # After rotation by position, this query aligns with the key exactly one token back.
    first.q_proj.bias[head] = torch.cat([gains * torch.cos(angles), -gains * torch.sin(angles)])
    first.k_proj.bias[head] = torch.cat([gains, torch.zeros(half)])
    for projection in (first.q_proj, first.k_proj):
        projection.weight[head].normal_(0, 0.01, generator=rng)
    subspace = _orthogonal(model.config.hidden_size, rng)[head]
    first.o_proj.weight[:, head] = 0.3 * subspace.T
    content = first.v_proj.weight[head] / 0.3
    for number in (0, 2):
        rows = slice(number * head_size, (number + 1) * head_size)
        second.k_proj.weight[rows] = subspace
        second.q_proj.weight[rows] = content


def _orthogonal(size: int, rng: torch.Generator) -> Tensor:
    orthogonal: Tensor = torch.linalg.qr(torch.randn(size, size, generator=rng)).Q
    return orthogonal
