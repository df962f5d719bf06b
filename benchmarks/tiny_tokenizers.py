"""Tokenizers of a few hundred tokens, one of each kind that behaves differently, made in a moment.

Not a program: ``episodes.py`` and the tests play episodes with them.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PROSE = """Oslo is the capital of Norway. The passages come back between <information> and </information>.
Question: who wrote the opera? Write a query between <search> and </search>, then <answer>Oslo</answer>.
Find the answer to the question at the end with the help of a search engine. First think between <think> and
</think>."""
TAGS = tuple(f"<{slash}{name}>" for name in ("think", "search", "answer", "information") for slash in ("", "/"))
CALLS = tuple(f"<{slash}{name}>" for name in ("tool_call", "tool_response") for slash in ("", "/"))
SPECIAL = {
    "chatml": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
}
_ENDS = {"chatml": "<|im_end|>", "deepseek": "<｜end▁of▁sentence｜>", "llama3": "<|eot_id|>"}


def chat_template(name: str) -> str:
    """A chat template as TRL bundles it."""
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def template_names() -> list[str]:
    """The chat templates that TRL bundles, without those that mark what is trained on."""
    names = [file.name.removesuffix(".jinja") for file in (files("trl") / "chat_templates").iterdir()]
    return sorted(name for name in names if "." not in name and not name.endswith("_training"))


def byte_level(
    family: str = "chatml", template: str | None = None, special: Iterable[str] = (), *, prefix_space: bool = False
) -> Any:
    """Byte-level BPE, as of Qwen, Llama 3 and DeepSeek; ``special`` are more special tokens.

    ``prefix_space``: a space before every text, as some of GPT-2's descendants put it.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator([PROSE], trainer)
    more = [*SPECIAL[family], *special]
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in more])
    return _wrapped(core, template, bos=None if family == "chatml" else more[0], eos=_ENDS[family], pad=more[0])


def sentencepiece(*, legacy: bool, special: Iterable[str] = (), template: str | None = None) -> Any:
    """Llama 2's pipeline: BPE over text whose spaces are ``▁``, other characters as bytes.

    ``legacy`` puts a ``▁`` before the text and after every special token; else before the text alone.
    """
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator([PROSE], trainers.BpeTrainer(vocab_size=300, show_progress=False))
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    learned, merges = _learned(trained)
    for piece in learned:
        vocabulary.setdefault(piece, len(vocabulary))
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in ("<unk>", "<s>", "</s>", *special)]
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _wrapped(core, template, bos="<s>", eos="</s>", pad="<unk>", unk="<unk>")


def unigram() -> Any:
    """A SentencePiece Unigram pipeline, as of ALBERT, T5 or XLM-R, without a token that begins a text."""
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "</s>"],
        unk_token="<unk>",
        initial_alphabet=[*map(chr, range(33, 127)), "·"],
        show_progress=False,
    )
    core.train_from_iterator([PROSE, "\n", *PROSE.splitlines()], trainer)
    return _wrapped(core, None, bos=None, eos="</s>", pad="</s>", unk="<unk>")


def _learned(trained: Tokenizer) -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces and merges of a trained BPE tokenizer, in order."""
    import json

    model = json.loads(trained.to_str())["model"]
    pieces = sorted(model["vocab"], key=lambda piece: model["vocab"][piece])
    return pieces, [tuple(merge) for merge in model["merges"]]


def _wrapped(core: Tokenizer, template: str | None, **tokens: str | None) -> Any:
    named = {f"{name}_token": text for name, text in tokens.items() if text is not None}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core, padding_side="left", **named)
    if template:
        wrapped.chat_template = chat_template(template)
    return wrapped
