"""Tokenizers as an encoder saves them: what they add to a text is part of the file, so that every reader adds it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sleuth.errors import ArtifactError

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_PAD, _UNKNOWN, _CLS, _SEP, _MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"


def plain_tokenizer(tokenizer: Any, *, append_eos: bool) -> Any:
    """``tokenizer`` without a chat template, with something to pad with and, if asked, EOS after every text.

    EOS goes into the tokenizer's own post-processor: truncation leaves room for it, and whoever loads the file
    appends it too. Raises ArtifactError for a tokenizer that cannot hold it.
    """
    if not append_eos or tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]:
        tokenizer.chat_template = None
        if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer
    if tokenizer.eos_token is None or not tokenizer.is_fast:
        raise ArtifactError("this backbone's tokenizer cannot append EOS", "set append_eos: false")
    end = processors.TemplateProcessing(
        single=f"$A {tokenizer.eos_token}", special_tokens=[(tokenizer.eos_token, tokenizer.eos_token_id)]
    )
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.Sequence([*filter(None, [backend.post_processor]), end])
    special = {name: getattr(tokenizer, name) for name in _SPECIAL if getattr(tokenizer, name, None) is not None}
    # a class of the model's family would build its own post-processor again when it is loaded
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        padding_side="right",
        **{"pad_token": tokenizer.eos_token, **special},
    )


def train_wordpiece(texts: Iterable[str], size: int, max_length: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer learnt from ``texts``, with BERT's special tokens; [SEP] is EOS too."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [_PAD, _UNKNOWN, _CLS, _SEP, _MASK]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in (_CLS, _SEP)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_CLS} $A {_SEP}", pair=f"{_CLS} $A {_SEP} $B:1 {_SEP}:1", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        padding_side="right",
        unk_token=_UNKNOWN,
        pad_token=_PAD,
        cls_token=_CLS,
        sep_token=_SEP,
        mask_token=_MASK,
        eos_token=_SEP,
    )
