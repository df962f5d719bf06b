"""A tiny policy that sees: Idefics3 with random weights, whose tokenizer is that of the tiny text policy."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def build_seeing_policy(folder: Path, tokenizer_of: Path, seed: int = 0) -> Path:
    words = AutoTokenizer.from_pretrained(tokenizer_of)
    marks = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    words.add_special_tokens({"additional_special_tokens": marks})
    ends = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id, "bos_token_id": None}
    text = {**_SIZES, **ends, "model_type": "llama", "vocab_size": len(words), "num_key_value_heads": 2}
    vision = {**_SIZES, "image_size": 32, "patch_size": 8}
    torch.manual_seed(seed)
    mark = words.convert_tokens_to_ids("<image>")
    config = Idefics3Config(text_config=text, vision_config=vision, image_token_id=mark, scale_factor=2, **ends)
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 32})
    Idefics3Processor(pictures, words, image_seq_len=4).save_pretrained(folder)
    return folder
