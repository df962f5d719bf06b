"""A reranker while it is trained: its model, the adapter if it has one, and what is saved in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.util import batch_to_device, is_sentence_transformer_model
from torch import Tensor

from hub.adapters import check_targets, lora_config
from hub.config import LoraSettings
from hub.models import resolve_model
from hub.randomness import seeded
from retrieval.rerankers.loading import CROSS_ENCODER, ask, check_room, is_asked, is_causal, open_cross_encoder
from retrieval.rerankers.scorer import Pair, cleaner, prompt_with
from retrieval.training.rerankers.config import RerankerSettings, YesNoSettings
from retrieval.training.row import TrainingRow
from sleuth.artifacts import atomic_folder, write_manifest
from sleuth.errors import ConfigError

KIND = "reranker"


@dataclass(frozen=True, slots=True)
class Reranker:
    """``adapter`` is peft's wrapper of the backbone that ``model`` runs; None: all weights are trained."""

    model: CrossEncoder
    adapter: Any = None

    @property
    def device(self) -> torch.device:
        found: torch.device = self.model.device
        return found

    def features(self, pairs: Sequence[Pair], instruction: str = "") -> dict[str, Any]:
        """``instruction`` "": that of the model."""
        clean = cleaner(self.model)
        texts = [(clean(query), clean(text)) for query, text in pairs]
        made: dict[str, Any] = self.model.preprocess(texts, prompt=prompt_with(self.model, instruction))
        return made

    def scores(self, features: Mapping[str, Any]) -> Tensor:
        """One logit a pair: [pairs]."""
        found: Tensor = self.model(batch_to_device(dict(features), self.device))["scores"]
        return found.view(-1).to(torch.promote_types(found.dtype, torch.float32))

    def save(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Write the model as sentence-transformers reads it, an adapter merged into its weights."""
        if self.adapter is not None:
            self.model[0].model = self.adapter.merge_and_unload()
        with atomic_folder(folder, overwrite=True) as out:
            self.model.save_pretrained(str(out), create_model_card=False)
            write_manifest(out, KIND, dict(about))


def new_reranker(settings: RerankerSettings, *, seed: int) -> Reranker:
    """The model that training starts from; what it lacks is drawn from ``seed``. Raises ConfigError."""
    with seeded(seed):
        return _drawn(settings)


def _drawn(settings: RerankerSettings) -> Reranker:
    name = resolve_model(settings.backbone, CROSS_ENCODER)
    how: dict[str, Any] = {"max_tokens": settings.max_tokens, "dtype": settings.dtype}
    head = settings.head
    causal = is_causal(name)
    if isinstance(head, YesNoSettings) or (head is None and causal):
        chosen = head if isinstance(head, YesNoSettings) else YesNoSettings()
        template = chosen.template or (None if is_sentence_transformer_model(name) else "qwen3")
        model = open_cross_encoder(name, template=template, **how)
        if not is_asked(model):
            raise ConfigError(f"head yes_no needs a causal language model, which {settings.backbone} is not")
        ask(model, settings.backbone, chosen.instruction)
    elif causal:
        raise ConfigError(
            f"head label would drop the vocabulary of {settings.backbone}, a causal language model", "head: yes_no"
        )
    else:
        model = open_cross_encoder(name, labels=1, **how)
    adapter = None if settings.lora is None else _with_adapter(model, settings.lora)
    return Reranker(model, adapter)


def check_instructions(rows: Sequence[TrainingRow], reranker: Reranker, name: str) -> None:
    """Raise ConfigError for rows with instructions that the model does not read, or has no room for."""
    instructions = {row.instruction for row in rows} - {""}
    if instructions and not is_asked(reranker.model):
        raise ConfigError(
            f"rows have instructions, and {name} has a classification head, which reads none",
            "leave them out, or train a language model with head: yes_no",
        )
    if instructions:
        check_room(reranker.model, name, max(instructions, key=len))


def _with_adapter(model: CrossEncoder, settings: LoraSettings) -> Any:
    """peft's wrapper; it puts the adapter's layers into the backbone itself. A classification head is trained whole."""
    from peft import get_peft_model

    backbone = model[0].model
    check_targets(backbone, settings)
    task = {} if is_asked(model) else {"task_type": "SEQ_CLS"}
    return get_peft_model(backbone, lora_config(settings, **task))
