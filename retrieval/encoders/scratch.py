"""Makes a backbone from scratch: a tokenizer learnt from a corpus and a network with random weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from retrieval.encoders.config import ScratchSettings
from retrieval.encoders.page_config import PageScratchSettings
from retrieval.encoders.page_processor import PageImageProcessor, PageProcessor, letter_tokenizer
from retrieval.encoders.page_trunk import PageTrunk, PageTrunkConfig, register
from retrieval.encoders.quiet import quiet_transformers
from retrieval.encoders.tokenizer import given_wordpiece, train_wordpiece
from sleuth.artifacts import atomic_folder, write_manifest


def make_backbone(
    folder: str | Path,
    texts: Iterable[str],
    settings: ScratchSettings | PageScratchSettings | None = None,
    *,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write a transformers folder with untrained weights and a tokenizer, learnt from ``texts`` or of given pieces.

    With `PageScratchSettings` it reads pages too, and a text letter by letter.

    Raises ArtifactError if the folder exists and may not be overwritten.
    """
    chosen = settings or ScratchSettings()
    if isinstance(chosen, PageScratchSettings):
        _make_page_trunk(folder, texts, chosen, seed, overwrite)
        return
    tokenizer = (
        given_wordpiece(chosen.vocabulary_file, chosen.max_positions)
        if chosen.vocabulary_file
        else train_wordpiece(texts, chosen.vocabulary, chosen.max_positions)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(chosen, tokenizer)
    with atomic_folder(folder, overwrite=overwrite) as out, quiet_transformers():
        network.save_pretrained(out)
        tokenizer.save_pretrained(out)
        write_manifest(out, "backbone", {"settings": chosen.model_dump(mode="json"), "seed": seed})


def _make_page_trunk(
    folder: str | Path, texts: Iterable[str], chosen: PageScratchSettings, seed: int, overwrite: bool
) -> None:
    register()
    tokenizer = letter_tokenizer(texts, chosen.letters)
    patch = {"patch_width": chosen.patch_width, "patch_height": chosen.patch_height}
    pages = PageImageProcessor(**patch, max_width=chosen.max_width, max_height=chosen.max_height)
    config = PageTrunkConfig(
        vocab_size=len(tokenizer),
        hidden_size=chosen.hidden_size,
        num_hidden_layers=chosen.layers,
        num_attention_heads=chosen.heads,
        spelling=chosen.spelling,
        context=chosen.context,
        dropout=chosen.dropout,
        **patch,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PageTrunk(config)
    with atomic_folder(folder, overwrite=overwrite) as out, quiet_transformers():
        network.save_pretrained(out)
        PageProcessor(pages, tokenizer).save_pretrained(out)
        write_manifest(out, "backbone", {"settings": chosen.model_dump(mode="json"), "seed": seed})


def _network(settings: ScratchSettings, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": settings.hidden_size,
        "intermediate_size": 4 * settings.hidden_size,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "max_position_embeddings": settings.max_positions,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if settings.family == "llama":
        return LlamaModel(LlamaConfig(**shape))
    dropout = {"hidden_dropout_prob": settings.dropout, "attention_probs_dropout_prob": settings.dropout}
    config = BertConfig(**shape, **dropout)
    return BertForMaskedLM(config) if settings.masked_lm else BertModel(config)
