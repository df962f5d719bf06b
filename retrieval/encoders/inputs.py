"""What an encoder is given: a text, or a picture with or without a text beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeGuard

from hub.pictures import decode
from retrieval.encoders.config import Reads
from retrieval.passages import passage_text
from sleuth.types import Image, Passage


@dataclass(frozen=True, slots=True)
class Seen:
    """A picture, and a text that is read with it; empty: the picture alone."""

    image: Image
    text: str = ""


Input = str | Seen
_MARKS = ("image_token", "video_token", "audio_token")
"""Attributes of processors."""


def input_of(passage: Passage, reads: Reads) -> Input:
    """What is read of ``passage``: its picture, where it has one and pictures are read, with its text or without."""
    if reads == "text" or passage.image is None:
        return passage_text(passage)
    return Seen(passage.image, passage_text(passage) if reads == "both" else "")


def kind_of(given: Input) -> str:
    """text, image or image+text: inputs of one kind go through a model together."""
    if isinstance(given, str):
        return "text"
    return "image+text" if given.text else "image"


def are_texts(inputs: Sequence[Input]) -> TypeGuard[Sequence[str]]:
    return all(isinstance(given, str) for given in inputs)


def for_library(inputs: Sequence[Input], first: Any = None, longest: int | None = None) -> list[dict[str, Any]]:
    """``inputs`` as sentence-transformers takes them, pictures decoded.

    ``first`` is the model's module that takes them. Texts are named as such: a bare string that looks like a path or a
    link would be opened. What stands for a picture in the texts of its processor is broken where a text has it: it
    would be taken for a picture that nobody gave. A text beside a picture is cut to ``longest`` tokens.
    """
    processor = getattr(first, "processor", None)
    marks = [mark for name in _MARKS if isinstance(mark := getattr(processor, name, None), str)]

    def plain(text: str) -> str:
        for mark in marks:
            text = text.replace(mark, f"{mark[0]}\u00b7{mark[1:]}")
        return text

    pictures = iter(decoded([given.image for given in inputs if isinstance(given, Seen)]))
    found: list[dict[str, Any]] = []
    for given in inputs:
        if isinstance(given, str):
            found.append({"text": plain(given)})
        else:
            text = plain(given.text)
            if longest is not None and text:
                text = beginning(text, first.tokenizer, longest)
            found.append({"image": next(pictures), **({"text": text} if text else {})})
    return found


def beginning(text: str, tokenizer: Any, tokens: int) -> str:
    """As much of ``text`` as its first ``tokens`` tokens are; special ones do not count."""
    if len(text) <= tokens or not tokenizer.is_fast:
        return text
    made = tokenizer(text, add_special_tokens=False, truncation=True, max_length=tokens, return_offsets_mapping=True)
    return text[: max((end for _, end in made["offset_mapping"]), default=0)]


def decoded(images: Sequence[Image]) -> list[Any]:
    """The pictures in RGB, decoded in threads. Raises DataError naming one that is damaged or too large."""
    if len(images) < 4:
        return [decode(image) for image in images]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as workers:
        return list(workers.map(decode, images))
