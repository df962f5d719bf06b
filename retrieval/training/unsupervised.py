"""LLM2Vec's objectives without labels: masked next-token prediction, and unsupervised SimCSE.

Both go through the texts in a new order each epoch, as a function of seed and step alone, so that runs resume.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.util import get_world_size
from torch import Tensor, nn
from torch.nn import functional

from hub.adapters import adapter_base
from hub.models import loading
from retrieval.encoders.assembly import ENCODER
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.family import Encoded
from retrieval.encoders.quiet import quiet_transformers
from retrieval.passages import passage_text
from retrieval.training.gradient_cache import Embed, cached_backward
from retrieval.training.loss import Targets
from retrieval.training.objective import contrast
from retrieval.training.ranks import gather, rank_slice
from retrieval.training.row import TrainingRow, passages_of
from retrieval.training.start import Material
from retrieval.training.trainer import add_adapter
from retrieval.training.unsupervised_config import MntpSettings, SimcseSettings, TextTraining
from sleuth.errors import ArtifactError, ConfigError, DataError
from sleuth.seeding import derive_seed
from sleuth.types import Passage


class Texts:
    """The texts of a step, distinct; a batch may span two epochs."""

    def __init__(self, rows: Sequence[TrainingRow], settings: TextTraining, seed: int) -> None:
        found = dict.fromkeys([*(passage_text(p) for p in passages_of(rows)), *(row.query for row in rows)])
        self._texts = [text for text in found if text.strip()]
        self.batch_size = min(settings.batch_size, len(self._texts))
        if self.batch_size < 2:
            raise DataError("the rows have fewer than two texts to learn from", "name more data")
        self._seed = seed
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def steps(self, epochs: float) -> int:
        return max(1, -(-round(epochs * len(self._texts)) // self.batch_size))

    def batch(self, step: int) -> list[str]:
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = [divmod(place, len(self._texts)) for place in places]
        return list(dict.fromkeys(self._texts[self._order(epoch)[place]] for epoch, place in epochs))

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self._texts)))
        random.Random(derive_seed(self._seed, "texts", epoch)).shuffle(order)
        return order


class Simcse:
    """Each text twice, under two dropouts; the other texts of the batch are negatives (Gao et al. 2021)."""

    def __init__(self, texts: Texts, settings: SimcseSettings) -> None:
        self._texts, self._settings = texts, settings

    def steps(self, epochs: float) -> int:
        return self._texts.steps(epochs)

    def table_of(self, _passages: Sequence[Passage]) -> None:
        return None

    def backward(self, encoder: Encoder, step: int) -> dict[str, float]:
        texts, figures = self._texts.batch(step), dict[str, float]()
        count, mine = len(texts), rank_slice(len(texts))
        targets = Targets(torch.arange(count), torch.zeros(count, count, dtype=torch.bool))

        def loss_of(parts: Sequence[Encoded]) -> Tensor:
            others = gather(parts[1], count)
            everyone = gather(parts[0], count) if len(self._settings.directions) > 1 else None
            found, _ = contrast(encoder, parts[0], others, targets, self._settings, everyone, mine)
            figures.update(loss=float(found.loss.detach()), accuracy=found.accuracy)
            return found.loss * (len(parts[0]) / count)

        once, again = self._chunks(encoder, texts[mine]), self._chunks(encoder, texts[mine])
        cached = self._settings.micro_batch is not None
        cached_backward([once, again], loss_of, cached=cached, device=encoder.device)
        return figures

    def _chunks(self, encoder: Encoder, texts: Sequence[str]) -> list[Embed]:
        size = self._settings.micro_batch or max(len(texts), 1)
        parts = [texts[start : start + size] for start in range(0, len(texts), size)]
        if not parts:
            return [lambda: encoder.nothing("passage")]
        return [self._embed(encoder, encoder.features(part, "passage")) for part in parts]

    def _embed(self, encoder: Encoder, features: dict[str, Tensor]) -> Embed:
        def embed() -> Encoded:
            with _autocast(encoder, self._settings):
                return encoder.embed(features, "passage")

        return embed


class Mntp:
    """Cross entropy of the masked tokens of a batch, each told from the state of the token before it."""

    def __init__(self, texts: Texts, settings: MntpSettings, seed: int, mask: int, head: Tensor | None) -> None:
        """``head`` [vocabulary, d] tells tokens from states; None: the input embeddings as they are at a step."""
        self._texts, self._settings, self._seed = texts, settings, seed
        self._mask, self._head = mask, head

    def steps(self, epochs: float) -> int:
        return self._texts.steps(epochs)

    def table_of(self, _passages: Sequence[Passage]) -> None:
        return None

    def backward(self, encoder: Encoder, step: int) -> dict[str, float]:
        texts = self._texts.batch(step)
        features = encoder.features(texts, "passage")
        chosen = self.masked(encoder, features, step)
        mine, total = rank_slice(len(texts)), int(chosen.sum())
        if not total:
            raise DataError("no token of a whole batch can be masked: its texts have one token", "leave such texts out")
        size, loss, right = self._settings.micro_batch or max(mine.stop - mine.start, 1), 0.0, 0
        for start in range(mine.start, mine.stop, size):
            rows = slice(start, min(start + size, mine.stop))
            part = {name: value[rows] for name, value in features.items() if len(value) == len(texts)}
            if chosen[rows].any():
                found, hits = self._loss(encoder, part, chosen[rows])
                (found / total).backward()
                loss, right = loss + float(found.detach()), right + hits
        share = get_world_size() / total  # the mean over ranks is that over all masked tokens
        read = int(features["attention_mask"].sum())
        return {"loss": loss * share, "accuracy": right * share, "masked": total / read}

    def masked(self, encoder: Encoder, features: Mapping[str, Tensor], step: int) -> Tensor:
        """Which tokens are masked, bool [texts, tokens]: never special ones, nor the first, which none precedes.

        At least one, so that a batch of short texts teaches something too.
        """
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "masks", step))
        drawn = torch.rand(features["input_ids"].shape, generator=generator)
        tokenizer = _backbone(encoder).tokenizer
        special = torch.isin(features["input_ids"], torch.tensor(tokenizer.all_special_ids))
        drawn = drawn.masked_fill(special | ~features["attention_mask"].bool(), 1.0)
        drawn[:, 0] = 1.0
        return (drawn < self._settings.mask_share) | ((drawn == drawn.min()) & (drawn < 1.0))

    def _loss(self, encoder: Encoder, features: Mapping[str, Tensor], chosen: Tensor) -> tuple[Tensor, int]:
        """The sum over masked tokens, and how many of them score highest."""
        first = _backbone(encoder)
        hidden = features["input_ids"].masked_fill(chosen, self._mask)
        inputs = {**features, "input_ids": hidden}
        with _autocast(encoder, self._settings):
            states = first({name: value.to(encoder.device) for name, value in inputs.items()})["token_embeddings"]
            before = states[:, :-1][chosen[:, 1:].to(encoder.device)]
            head = first.model.get_input_embeddings().weight if self._head is None else self._head
            logits = before @ head.to(device=before.device, dtype=before.dtype).T
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        wanted = features["input_ids"][chosen].to(encoder.device)
        return functional.cross_entropy(logits, wanted, reduction="sum"), int((logits.argmax(1) == wanted).sum())


def mntp(settings: MntpSettings, material: Material) -> tuple[Encoder, Mntp]:
    """The encoder and its objective. Raises ArtifactError without a head, ConfigError for no such mask token."""
    encoder = material.encoder
    _refuse_two_towers(encoder, "mntp")
    token = settings.mask_token or _backbone(encoder).tokenizer.mask_token or "_"
    number = _backbone(encoder).tokenizer.get_vocab().get(token)
    if number is None:
        raise ConfigError(f"the backbone's vocabulary has no mask token '{token}'", "set training.mask_token")
    head = None if settings.head == "tied" else _own_head(encoder)
    _adapt(settings, material)
    return encoder, Mntp(Texts(material.rows, settings, material.seed), settings, material.seed, number, head)


def simcse(settings: SimcseSettings, material: Material) -> tuple[Encoder, Simcse]:
    """The encoder with its dropout set, and its objective."""
    _refuse_two_towers(material.encoder, "simcse")
    if settings.dropout is not None:
        _set_dropout(material.encoder, settings.dropout)
    _adapt(settings, material)
    return material.encoder, Simcse(Texts(material.rows, settings, material.seed), settings)


def _adapt(settings: TextTraining, material: Material) -> None:
    """Add the adapter, if there is to be one; its random start depends on the seed alone."""
    if settings.lora is not None:
        add_adapter(material.encoder, settings.lora, material.seed)


def _set_dropout(encoder: Encoder, share: float) -> None:
    """In the modules alone: the saved configuration stays as it is."""
    found = False
    for module in _backbone(encoder).model.modules():
        if isinstance(module, nn.Dropout):
            module.p, found = share, True
        if isinstance(getattr(module, "attention_dropout", None), float | int):
            module.attention_dropout, found = share, True
    if not found and share:
        raise ConfigError("the backbone has no dropout, so a text and its copy would be equal", "set training.lora")


def _own_head(encoder: Encoder) -> Tensor | None:
    """The frozen head of the model that the encoder was made from; None where it is the input embeddings."""
    from transformers import AutoConfig, AutoModelForCausalLM

    source = encoder.settings.backbone
    folder = adapter_base(source, ENCODER) or source
    with loading(folder, ENCODER), quiet_transformers():
        config: Any = AutoConfig.from_pretrained(folder)
        if getattr(config, "tie_word_embeddings", False):
            return None
        if not any("ForCausalLM" in name for name in getattr(config, "architectures", None) or ()):
            raise ArtifactError(
                f"{Path(folder).name} has no head that tells the next token",
                "set training.head: tied",
            )
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        weight: Tensor = model.get_output_embeddings().weight.detach()
    return weight


def _refuse_two_towers(encoder: Encoder, kind: str) -> None:
    if encoder.settings.towers == "separate":
        raise ConfigError(f"training of kind {kind} takes an encoder with one tower", "set towers: shared")


def _backbone(encoder: Encoder) -> Any:
    return next(iter(encoder.tower("passage").children()))


def _autocast(encoder: Encoder, settings: TextTraining) -> Any:
    return torch.autocast(encoder.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")
