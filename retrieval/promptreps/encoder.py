"""Asks an instruct model for one word: the state before that word is the vector, its logits are the terms."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hub.models import loading, resolve_model
from retrieval.encoders.assembly import ENCODER
from retrieval.encoders.config import EncoderSettings, Role
from retrieval.encoders.dense import DENSE
from retrieval.encoders.encoder import weights_digest
from retrieval.encoders.family import Encoded, Family, OnEncoded, join
from retrieval.encoders.modalities import TEXT, Modalities
from retrieval.encoders.quiet import quiet_transformers
from retrieval.encoders.sparse import SPARSE
from retrieval.passages import passage_text
from retrieval.promptreps.config import PromptRepsChoice
from retrieval.promptreps.prompt import prompt_of
from retrieval.promptreps.terms import Terms, pack, terms_of, unpack
from sleuth.artifacts import fingerprint_of
from sleuth.errors import ArtifactError, DataError
from sleuth.types import Passage


@dataclass(frozen=True, slots=True)
class PromptReps:
    """Rows of `pack`; compared by their vectors alone. Fusing both needs ranks, which an index has."""

    dimension: int
    kind: str = "promptreps"

    def read(self, outputs: Mapping[str, Tensor], settings: EncoderSettings) -> Encoded:
        raise NotImplementedError("nothing is trained")

    def scores(self, queries: Encoded, passages: Encoded) -> Tensor:
        return unpack(queries, self.dimension)[0] @ unpack(passages, self.dimension)[0].T


class PromptRepsEncoder:
    """A `PassageEncoder` over a causal language model; one forward pass a text gives both halves."""

    modalities: Modalities = TEXT

    def __init__(self, model: Any, tokenizer: Any, settings: PromptRepsChoice) -> None:
        self.settings, self.source = settings, settings.backbone
        self._model, self._tokenizer = model.eval(), tokenizer
        context = getattr(model.config, "max_position_embeddings", None)
        roles: tuple[Role, Role] = ("query", "passage")
        self._prompts = {role: prompt_of(tokenizer, settings, role, context) for role in roles}
        self.hidden, self.vocabulary = int(model.config.hidden_size), int(model.config.vocab_size)
        families: dict[str, Family] = {"dense": DENSE, "sparse": SPARSE}
        self.family: Family = families.get(settings.part) or PromptReps(self.hidden)

    @functools.cached_property
    def _weights(self) -> str:
        return weights_digest(self._model)

    @property
    def dimension(self) -> int:
        return self.vocabulary if self.settings.part == "sparse" else self.hidden

    @property
    def device(self) -> torch.device:
        device: torch.device = self._model.device
        return device

    @property
    def fingerprint(self) -> str:
        return fingerprint_of({role: self.tower_fingerprint(role) for role in self._prompts})

    def tower_fingerprint(self, role: Role, /) -> str:
        prompt, settings = self._prompts[role], self.settings
        how = [settings.kind, settings.part, settings.terms, *prompt.before, -1, *prompt.after, prompt.longest]
        return fingerprint_of({"prompt": how, "weights": self._weights})

    def encode_texts(
        self, texts: Sequence[str], role: Role, batch_size: int = 32, progress: OnEncoded | None = None
    ) -> Encoded:
        """The part of ``settings`` of each text, in order, on the CPU. Raises DataError for an empty text or NaN."""
        ids = self._prompts[role].ids(self._tokenizer, texts)
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        parts: list[Encoded] = []
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            parts.append(self._answers([ids[row] for row in rows], [texts[row] for row in rows]))
            if progress:
                progress(start + len(rows))
        if not parts:
            return self.encode_texts(["-"], role)[:0]
        return join(parts)[torch.tensor(order).argsort()]

    def encode_passages(
        self, passages: Sequence[Passage], batch_size: int = 32, progress: OnEncoded | None = None
    ) -> Encoded:
        return self.encode_texts([passage_text(p) for p in passages], "passage", batch_size, progress)

    def _answers(self, ids: Sequence[Sequence[int]], texts: Sequence[str]) -> Encoded:
        states, logits = self._next(ids)
        if not (states.isfinite().all() and logits.isfinite().all()):
            raise DataError(f"{self.source} gave a state that is not finite (NaN)", "its weights are damaged")
        if self.settings.part == "dense":
            return Encoded(functional.normalize(states, dim=1))
        terms: Terms = terms_of(logits, texts, self._tokenizer, self.settings.terms)
        if self.settings.part == "sparse":
            return Encoded(terms.as_words(self.vocabulary))
        return pack(functional.normalize(states, dim=1), terms)

    def _next(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The last state [texts, d] and the logits of the next token [texts, vocabulary], from one pass."""
        width = max(map(len, ids))
        kept: list[Tensor] = []
        fill = self._tokenizer.pad_token_id or 0
        inputs = torch.tensor([[fill] * (width - len(row)) + list(row) for row in ids])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
        places = (mask.cumsum(1) - 1).clamp(min=0)
        read = self._model.base_model.register_forward_hook(lambda _m, _i, out: kept.append(out[0][:, -1]))
        try:
            with torch.inference_mode():
                given = {"input_ids": inputs, "attention_mask": mask, "position_ids": places}
                on_device = {name: value.to(self.device) for name, value in given.items()}
                found = self._model(**on_device, logits_to_keep=1, use_cache=False)
        finally:
            read.remove()
        return kept[0].float().cpu().clone(), found.logits[:, -1].float().cpu().clone()


def open_promptreps(settings: PromptRepsChoice, *, device: str | None = None) -> PromptRepsEncoder:
    """The encoder on the model of ``settings``. Raises ArtifactError for one that cannot answer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    folder = resolve_model(settings.backbone, ENCODER)
    with loading(folder, ENCODER), quiet_transformers():
        config = AutoConfig.from_pretrained(folder)
        heads = [name for name in getattr(config, "architectures", None) or () if "ForCausalLM" in name]
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or not heads:
            raise ArtifactError(
                f"{settings.backbone} has no head that tells the next token, so it cannot be asked for a word",
                "choose a causal language model with its head",
            )
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, settings.dtype))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return PromptRepsEncoder(model.to(chosen), tokenizer, settings)
