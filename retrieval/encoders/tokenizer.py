"""Tokenizers as saved with an encoder: what they add to a text is part of the file, so every reader adds it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sleuth.errors import ArtifactError, DataError

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_PAD, _UNKNOWN, _CLS, _SEP, _MASK = _RESERVED = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"


def plain_tokenizer(tokenizer: Any, *, append_eos: bool) -> Any:
    """``tokenizer`` without a chat template, with a padding token and, if ``append_eos``, EOS after every text.

    EOS goes into the tokenizer's own post-processor: truncation leaves room for it, and anyone who loads the file
    appends it too. Raises ArtifactError for a tokenizer that does not support this.
    """
    if not append_eos or tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]:
        tokenizer.chat_template = None
        if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer
    if tokenizer.eos_token is None or not tokenizer.is_fast:
        raise ArtifactError("this backbone's tokenizer cannot append EOS", "set append_eos: false")
    backend = Tokenizer.from_str(_ending_in(tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.backend_tokenizer))
    special = {name: getattr(tokenizer, name) for name in _SPECIAL if getattr(tokenizer, name, None) is not None}
    # a model-specific class would rebuild its own post-processor on loading
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        padding_side="right",
        truncation_side=tokenizer.truncation_side,
        model_input_names=tokenizer.model_input_names,
        **{"pad_token": tokenizer.eos_token, **special},
    )
    if made("a")["input_ids"] != [*tokenizer("a")["input_ids"], tokenizer.eos_token_id]:
        raise ArtifactError("this backbone's tokenizer cannot append EOS", "set append_eos: false")
    return made


def _ending_in(token: str, number: int, backend: Tokenizer) -> str:
    """``backend`` as JSON, its template ending in ``token``. Two templates in sequence would not work: the second
    would take the tokens added by the first for one text of a pair, and the text for the other."""
    content = json.loads(backend.to_str())
    steps = content["post_processor"]
    steps = [] if steps is None else steps["processors"] if steps["type"] == "Sequence" else [steps]
    template = next((step for step in steps if step["type"] == "TemplateProcessing"), None)
    if template is None:
        template = json.loads(processors.TemplateProcessing(single="$A", special_tokens=[]).__getstate__())
        steps.append(template)
    template["single"].append({"SpecialToken": {"id": token, "type_id": 0}})
    template["special_tokens"][token] = {"id": token, "ids": [number], "tokens": [token]}
    content["post_processor"] = {"type": "Sequence", "processors": steps}
    return json.dumps(content)


def train_wordpiece(texts: Iterable[str], size: int, max_length: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer learnt from ``texts``, with BERT's special tokens; [SEP] is also EOS.

    The same texts give the same tokenizer.
    """
    return _wordpiece_of(_wordpieces(list(texts), size), max_length)


def given_wordpiece(path: str | Path, max_length: int) -> PreTrainedTokenizerFast:
    """The same with the word pieces of a file, one per line, with ``##`` before continuations."""
    try:
        lines = Path(path).read_text(encoding="utf-8").lower().split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the word pieces {path}: {error}") from None
    if not lines:
        raise DataError(f"{path} has no word pieces")
    pieces = dict.fromkeys([*_RESERVED, *lines])
    return _wordpiece_of({piece: number for number, piece in enumerate(pieces)}, max_length)


def _wordpiece_of(vocabulary: dict[str, int], max_length: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    for special in _RESERVED:
        tokenizer.add_special_tokens([special])
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


def _wordpieces(texts: list[str], size: int) -> dict[str, int]:
    """The vocabulary. Single characters get their ids first, because the trainer would number them, and so break
    ties, in an order that varies between runs."""
    learner = Tokenizer(models.WordPiece(unk_token=_UNKNOWN))
    learner.normalizer = normalizers.BertNormalizer(lowercase=True)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    characters = sorted({c for text in texts for c in learner.normalizer.normalize_str(text) if not c.isspace()})
    first = [*_RESERVED, *characters, *(f"##{c}" for c in characters)]
    trainer = trainers.WordPieceTrainer(vocab_size=max(size, len(first)), special_tokens=first, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    vocabulary: dict[str, int] = learner.get_vocab()
    return vocabulary
