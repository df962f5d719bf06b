"""A tiny causal language model with chat markup and with single tokens for yes and no."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from retrieval.rerankers.templates import TEMPLATES

MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + m['content'] }}{% endfor %}"
"""A chat template that passes any role through, as a published model's."""


def make_decoder(folder: Path, texts: Sequence[str], family: str = "llama", **changes: Any) -> Path:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    asked = [template.render("", "") for template in TEMPLATES.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=MARKS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([*asked * 3, *texts, *["yes", "no"] * 50], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=MARKS[0], pad_token=MARKS[0], additional_special_tokens=MARKS[1:]
    )
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: Any = (
            Qwen3ForCausalLM(Qwen3Config(head_dim=16, **shape | changes))
            if family == "qwen3"
            else LlamaForCausalLM(LlamaConfig(**shape | changes))
        )
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
