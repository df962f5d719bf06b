"""Inputs of the page trunk: texts as letters, pictures as ink on a grid of patches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoImageProcessor, AutoProcessor, BatchFeature, PreTrainedTokenizerFast
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin

SPACE = " "
_PAD, _UNKNOWN, _PATCH, _ = _RESERVED = ("[PAD]", "[UNK]", "[PATCH]", SPACE)
_INK = 0.1
"""A patch whose darkest and lightest pixels differ by less has nothing on it."""


class PageImageProcessor(BaseImageProcessor):  # type: ignore[misc]
    """Pictures of any size to ink from 0 (background) to 1, padded to whole patches.

    A picture larger than ``max_width`` by ``max_height`` is made smaller. What is lighter than its background counts as
    ink too, so a page may be white on black.
    """

    model_input_names = ("pixel_values",)

    def __init__(
        self,
        patch_width: int = 8,
        patch_height: int = 16,
        max_width: int = 512,
        max_height: int = 768,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.patch_width, self.patch_height = patch_width, patch_height
        self.max_width, self.max_height = max_width, max_height

    def __call__(self, images: Sequence[Any], **_: Any) -> BatchFeature:
        """``pixel_values`` [pictures, 1, height, width], and ``inked`` [pictures, rows, columns] as bool."""
        from PIL import Image as Pillow

        pages = []
        for image in images:
            picture = image if isinstance(image, Pillow.Image) else Pillow.fromarray(np.asarray(image))
            pages.append(self._ink(picture))
        rows, columns = (max(page.shape[axis] for page in pages) // size for axis, size in enumerate(self._patch))
        values = np.zeros((len(pages), 1, rows * self.patch_height, columns * self.patch_width), np.float32)
        for number, page in enumerate(pages):
            values[number, 0, : page.shape[0], : page.shape[1]] = page
        cells = values[:, 0].reshape(len(pages), rows, self.patch_height, columns, self.patch_width)
        inked = cells.max((2, 4)) - cells.min((2, 4)) >= _INK
        data = {"pixel_values": torch.from_numpy(values), "inked": torch.from_numpy(inked)}
        return BatchFeature(data, tensor_type=None)

    @property
    def _patch(self) -> tuple[int, int]:
        return self.patch_height, self.patch_width

    def scale_of(self, width: int, height: int) -> float:
        """By how much a picture of this size is made smaller; at most 1."""
        return min(1.0, self.max_width / width, self.max_height / height)

    def _ink(self, picture: Any) -> NDArray[np.float32]:
        grey = picture.convert("L")
        scale = self.scale_of(*grey.size)
        if scale < 1:
            grey = grey.resize([max(1, round(side * scale)) for side in grey.size])
        pixels = np.asarray(grey, np.float32) / 255
        levels, counts = np.unique(pixels, return_counts=True)
        ink = np.abs(pixels - levels[counts.argmax()])
        ragged = [-side % size for side, size in zip(ink.shape, self._patch, strict=True)]
        padded: NDArray[np.float32] = np.pad(ink, [(0, more) for more in ragged])
        return padded


class PageProcessor(ProcessorMixin):  # type: ignore[misc]
    """Letters and patches as one sequence: the patches of a picture, row by row, then the letters of its text."""

    def __init__(self, image_processor: PageImageProcessor, tokenizer: PreTrainedTokenizerFast, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self,
        images: Sequence[Any] | None = None,
        text: Sequence[str] | None = None,
        text_kwargs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> BatchFeature:
        """Inputs of `PageTrunk`; the mask is 0 at padding, at spaces and at patches without ink."""
        parts: list[dict[str, torch.Tensor]] = []
        found: dict[str, torch.Tensor] = {}
        if images is not None:
            seen = self.image_processor(images)
            found["pixel_values"] = seen["pixel_values"]
            mask = seen["inked"].flatten(1).long()
            patch = self.tokenizer.convert_tokens_to_ids(_PATCH)
            parts.append({"input_ids": torch.full_like(mask, patch), "attention_mask": mask})
        if text is not None:
            parts.append(self._letters(text, text_kwargs or {}))
        for name in ("input_ids", "attention_mask"):
            found[name] = torch.cat([part[name] for part in parts], 1)
        return BatchFeature(found)

    def _letters(self, texts: Sequence[str], how: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        limit = {"truncation": True, "max_length": how["max_length"]} if how.get("max_length") else {}
        made = self.tokenizer(
            list(texts), padding=True, padding_side="right", return_tensors="pt", return_token_type_ids=False, **limit
        )
        ids = made["input_ids"].long()
        spaces = ids == self.tokenizer.convert_tokens_to_ids(SPACE)
        return {"input_ids": ids, "attention_mask": made["attention_mask"].long() * ~spaces}

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]


def letter_tokenizer(texts: Iterable[str], most: int) -> PreTrainedTokenizerFast:
    """A token a letter, for the ``most`` frequent ones of ``texts``; any white space is one space."""
    counts = Counter(letter for text in texts for letter in text if not letter.isspace())
    letters = [letter for letter, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
    names = list(dict.fromkeys([*_RESERVED, *letters]))[:most]
    backend = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token=_UNKNOWN))
    backend.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=100_000,
        padding_side="right",
        unk_token=_UNKNOWN,
        pad_token=_PAD,
        additional_special_tokens=[_PATCH],
    )


def register_processor(config: type) -> None:
    AutoImageProcessor.register(config, image_processor_classes={"pil": PageImageProcessor}, exist_ok=True)
    AutoProcessor.register(config, PageProcessor, exist_ok=True)
