"""Policies that see: pictures in a transcript as tokens, and their pixels where the model reads those tokens.

A page inserted in an observation is the tokens that the model's processor writes for it. The transcript has these ids
and nothing else, so that tokens in are tokens out. `Pictures` knows which pages a transcript shows and puts their
features, in sampling and in training alike, in the place of the embeddings of the processor's image token there;
an image token that the policy itself sampled stays an ordinary one.

Who samples says which pictures each row shows. Who trains gives token ids alone, which are looked up among those that
were sampled; pages of one size have the same tokens, so ids that have shown different pages are refused there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from agent.codec import HFCodec
from hub.pictures import decode
from sleuth.checkpoints import checkpoint_at
from sleuth.errors import PolicyError, TrainingError
from sleuth.pictures import Placed
from sleuth.types import Image

_BEGINNINGS = 16_384
"""Beginnings of transcripts, up to their first picture, that are remembered: more than a rollout has."""
_OF_TEXT = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})
_Transcript = tuple[int, ...]


class Pictures:
    """What the transcripts of a policy show. ``processor`` is that of the model, as transformers loads it."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.token_id = int(processor.tokenizer.convert_tokens_to_ids(processor.image_token))
        self._firsts: set[int] = set()
        self._shown: OrderedDict[_Transcript, dict[_Transcript, list[tuple[Placed, ...]]]] = OrderedDict()
        self._rows: Sequence[Sequence[Placed]] | None = None

    def tokens(self, image: Image) -> tuple[int, ...]:
        """The ids that stand for ``image``. Raises DataError if it is damaged."""
        made: list[int] = self._processed(image)["input_ids"][0].tolist()
        self._firsts.add(made[0])
        return tuple(made)

    def remember(self, transcript: Sequence[int], images: Sequence[Placed]) -> None:
        """``transcript`` shows ``images``; so does any that goes on from it."""
        if not images:
            return
        whole = tuple(transcript)
        beginning = whole[: images[0][0]]
        self._firsts.add(whole[images[0][0]])
        known = self._shown.setdefault(beginning, {}).setdefault(whole, [])
        if tuple(images) not in known:
            known.append(tuple(images))
        self._shown.move_to_end(beginning)
        if len(self._shown) > _BEGINNINGS:
            self._shown.popitem(last=False)

    def attach(self, model: Any) -> None:
        """Let ``model``, whenever it is called with token ids, see what they show."""
        model.register_forward_pre_hook(self._see, with_kwargs=True)

    @contextmanager
    def showing(self, rows: Sequence[Sequence[Placed]]) -> Iterator[None]:
        """Within the context row i that the model is called with shows ``rows[i]``, whatever was remembered."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = None

    def shown_in(self, tokens: Sequence[int]) -> Sequence[Placed]:
        """The pictures of the longest remembered transcript that ``tokens`` begin with.

        Raises TrainingError if the same tokens have shown different pictures.
        """
        whole = tuple(tokens)
        best: _Transcript = ()
        images: Sequence[tuple[Placed, ...]] = [()]
        for beginning in (whole[:end] for end in self._starts(whole)):
            for known, shown in self._shown.get(beginning, {}).items():
                if len(known) > len(best) and whole[: len(known)] == known:
                    best, images = known, shown
        if len(images) > 1:
            names = " and ".join(", ".join(image.name for _, image in shown) for shown in images[:2])
            raise TrainingError(
                f"equal transcripts have shown different pages: {names}",
                "the same query must find the same pages for as long as a policy that sees is trained",
            )
        return images[0]

    def _starts(self, tokens: Sequence[int]) -> Iterator[int]:
        """Where a picture may begin: at the first token of what the processor writes for one."""
        return (place for place, token in enumerate(tokens) if token in self._firsts)

    def _processed(self, image: Image) -> Any:
        words = self.processor.image_token
        return self.processor(text=words, images=[decode(image)], add_special_tokens=False, return_tensors="pt")

    def _see(self, model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ids = kwargs.get("input_ids")
        if ids is None or not (ids == self.token_id).any():
            return args, kwargs
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.shape[1] > ids.shape[1]:  # what goes on from cached states was sampled
            return args, kwargs
        embedded = model.get_input_embeddings()(ids)
        for row, tokens in enumerate(ids):
            kept = torch.arange(len(tokens), device=ids.device) if mask is None else mask[row].nonzero()[:, 0]
            shown = self.shown_in(tokens[kept].tolist()) if self._rows is None else self._rows[row]
            embedded = self._with_features(model, embedded, row, tokens, kept, shown)
        return args, {**kwargs, "input_ids": None, "inputs_embeds": embedded}

    def _with_features(
        self, model: Any, embedded: Tensor, row: int, tokens: Tensor, kept: Tensor, shown: Sequence[Placed]
    ) -> Tensor:
        """``embedded`` [rows, columns, size] with the features of the pictures ``shown`` in one row."""
        for start, image in shown:
            made = self._processed(image)
            length = len(made["input_ids"][0])
            places = kept[start : start + length]
            places = places[tokens[places] == self.token_id]
            inputs = {name: value.to(embedded.device) for name, value in made.items() if name not in _OF_TEXT}
            found = model.get_image_features(**inputs)
            features = getattr(found, "pooler_output", found)
            features = torch.cat([*features]).reshape(-1, embedded.shape[-1]).to(embedded.dtype)
            embedded = embedded.index_put((torch.full_like(places, row), places), features)
        return embedded


class VisionCodec(HFCodec):
    """The tokenizer of a model that sees, beside its processor."""

    def __init__(self, tokenizer: Any, end_token_ids: Sequence[int], processor: Any) -> None:
        super().__init__(tokenizer, end_token_ids)
        self.pictures = Pictures(processor)

    def look(self, image: Image) -> Sequence[int]:
        return self.pictures.tokens(image)

    def save(self, folder: str | Path) -> None:
        self.pictures.processor.save_pretrained(folder)
        super().save(folder)


class ProcessorKeeper(TrainerCallback):  # type: ignore[misc]
    """Puts the processor into every checkpoint, from which policies are published; TRL knows the tokenizer only."""

    def __init__(self, codec: VisionCodec) -> None:
        self._codec = codec

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._codec.save(checkpoint_at(Path(args.output_dir), int(state.global_step)))


def sees(config: Any) -> bool:
    """Whether transformers has a model of this configuration that writes about pictures.

    Raises PolicyError for one whose positions have several dimensions, which are not counted here.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    kind = type(config)
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    if "mrope_section" in rope:
        raise PolicyError(
            f"a policy of kind {config.model_type} counts its positions in three dimensions, which is not supported",
            "choose one such as SmolVLM or Idefics3",
        )
    return True
