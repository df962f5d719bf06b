"""Text to tensors: sentence-transformers' modules, with the settings that belong to the weights.

One model of sentence-transformers, of the class that its family has there; two towers are its ``Router``. A saved
encoder loads in plain sentence-transformers (``encode_query``, ``encode_document``) and gives the same values there.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.base.losses.gradcache import RandContext
from sentence_transformers.base.model import BaseModel
from sentence_transformers.sentence_transformer.modules import Router, Transformer
from torch import Tensor, nn

from retrieval.encoders.config import EncoderSettings, Role
from retrieval.encoders.family import Encoded, Family, OnEncoded, PassageExpander, join
from retrieval.encoders.inputs import Input, Seen, are_texts, for_library, input_of, kind_of
from retrieval.encoders.lengths import WHOLE, refuse_too_long
from retrieval.encoders.modalities import Modalities, modalities_read
from retrieval.encoders.quiet import quiet_transformers
from retrieval.encoders.token_rows import append_ids, pad
from sleuth.artifacts import atomic_folder, write_manifest
from sleuth.errors import ConfigError, DataError, did_you_mean
from sleuth.types import Passage

KIND = "encoder"
TASKS: Mapping[Role, str] = {"query": "query", "passage": "document"}
"""sentence-transformers' names for the two roles."""

Vectors = NDArray[np.float32]

_UNUSED = ".pooler."
"""BERT weights on which no state of the last layer depends; random if a checkpoint lacks them."""
_BLOCK = 4096
"""Batch size of tokenisation."""


class Encoder:
    """Two towers, or a single one for both roles; ``family`` defines their outputs and how they are compared."""

    def __init__(
        self,
        model: BaseModel,
        settings: EncoderSettings,
        family: Family,
        source: str | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.family = family
        self.source = source
        """Folder or hub name it was loaded from; None if it has not been saved yet."""
        self.expander: PassageExpander | None = None
        """Adds terms to passages before they are encoded."""
        for name, weight in model.named_parameters():
            if _UNUSED in name:
                weight.requires_grad_(False)

    @property
    def modalities(self) -> Modalities:
        return modalities_read(getattr(self._first_module("passage"), "modalities", ["text"]), self.settings.reads)

    @property
    def dimension(self) -> int:
        return self.settings.width or int(self.model.get_embedding_dimension())

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def fingerprint(self) -> str:
        """Digest of both towers and their settings. Reads every weight, so store the result."""
        query, passage = (self._tower_identity(role) for role in TASKS)
        weights = weights_digest(self.tower("passage"))
        shared = self.tower("query") is self.tower("passage")
        other = weights if shared else weights_digest(self.tower("query"))
        return _digest([query, other, passage, weights, self.settings.comparison])

    def tower_fingerprint(self, role: Role) -> str:
        """Digest of all that determines the vectors of one role; an index is valid while its passage tower's is."""
        return _digest([self._tower_identity(role), weights_digest(self.tower(role))])

    def tower(self, role: Role) -> nn.Module:
        """The module that turns features of ``role`` into vectors; shared unless the towers are separate."""
        task, router = TASKS[_known(role)], router_of(self.model)
        tower: nn.Module = router.sub_modules[task] if router is not None else self.model
        return tower

    def inputs_of(self, passages: Sequence[Passage]) -> list[Input]:
        """What is read of each of ``passages``."""
        return [input_of(passage, self.settings.reads) for passage in passages]

    def features(self, inputs: Sequence[Input], role: Role) -> dict[str, Any]:
        """Model inputs [inputs, tokens], padded on the right: prompt, truncated text, EOS if the model uses it.

        All ``inputs`` are of one kind: texts, pictures, or pictures with texts.
        """
        if not are_texts(inputs):
            return self._processed(inputs, role)
        read = self._expanded(inputs, role)
        first = self._first_module(role)
        if not plain_text(first, role):
            return self._processed(read, role)
        return pad(first.tokenizer, self._tokens(read, role)) | self._left_out(role)

    def embed(self, features: Mapping[str, Any], role: Role) -> Encoded:
        """The inputs of ``features``, on the model's device, with gradients if the model is in training mode."""
        inputs = {n: value.to(self.device) if isinstance(value, Tensor) else value for n, value in features.items()}
        return self.family.read(self.model(inputs, task=TASKS[_known(role)]), self.settings)

    def nothing(self, role: Role) -> Encoded:
        """The encoding of zero texts, in this encoder's output shape; draws no random numbers."""
        with RandContext(torch.empty(0, device=self.device)):
            return self.embed(self.features(["-"], role), role)[:0]

    def encode_texts(
        self, texts: Sequence[str], role: Role, batch_size: int = 32, progress: OnEncoded | None = None
    ) -> Encoded:
        """The encoded ``texts`` in order, on the CPU; errors are those of `encode_inputs`."""
        return self.encode_inputs(texts, role, batch_size, progress)

    def encode_inputs(
        self, inputs: Sequence[Input], role: Role, batch_size: int = 32, progress: OnEncoded | None = None
    ) -> Encoded:
        """The encoded ``inputs`` in order, on the CPU; batches are of one kind and of similar lengths.

        Pictures are read a batch at a time. Raises DataError if one is damaged or a value is not finite.
        """
        order: list[NDArray[np.int64]] = []
        parts: list[Encoded] = []
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                for rows, features in self._all_batches(inputs, role, batch_size):
                    parts.append(self.embed(features, role).to("cpu"))
                    order.append(rows)
                    if progress:
                        progress(sum(map(len, order)))
            with torch.no_grad():  # not inference mode: a frozen table takes part in losses
                made = join(parts or [self.nothing(role).to("cpu")])
        finally:
            self.model.train(training)
        found = made[np.argsort(np.concatenate(order))] if order else made
        _refuse_not_finite(found, inputs)
        return found

    def encode_passages(
        self, passages: Sequence[Passage], batch_size: int = 32, progress: OnEncoded | None = None
    ) -> Encoded:
        """The encoded passages in order; of each is read what the settings say."""
        return self.encode_inputs(self.inputs_of(passages), "passage", batch_size, progress)

    def encode(
        self, texts: Sequence[str], role: Role, batch_size: int = 32, progress: OnEncoded | None = None
    ) -> Vectors:
        """Like `encode_texts`, for a dense encoder: vectors [texts, dimension]."""
        vectors: Vectors = self.encode_texts(texts, role, batch_size, progress).values.numpy()
        return vectors

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write weights, tokenizer and settings atomically; adapters are saved as adapters.

        Tokenizers are saved to pad on the right, as here: on the left, absolute positions would differ by batch.
        """
        for module in self.model.modules():
            if plain_text(module, "passage"):
                module.tokenizer.padding_side = "right"
        self.model.prompts.update({TASKS[role]: self.settings.prompt(role) for role in TASKS})
        with atomic_folder(folder, overwrite=overwrite) as out, quiet_transformers():
            self.model.save(str(out), create_model_card=False)
            settings = self.settings.model_dump(mode="json")
            fields = {"settings": settings, "dimension": self.dimension, "fingerprint": self.fingerprint}
            write_manifest(out, KIND, fields)
        self.source = str(folder)

    def _expanded(self, texts: Sequence[str], role: Role) -> list[str]:
        """``texts`` as they are encoded: passages with their further terms, if there are any."""
        if self.expander is None or role != "passage":
            return list(texts)
        return self.expander(texts, self._first_module(role).tokenizer, self.settings)

    def _processed(self, inputs: Sequence[Input], role: Role) -> dict[str, Any]:
        """Model inputs as sentence-transformers makes them; of texts without a token in integers too.

        Texts are cut, also beside a picture. A picture is whole: DataError if it has more tokens than the model reads.
        """
        first = self._first_module(role)
        longest = self.settings.max_tokens(role) if _is_cut(first, role) else None
        limit: dict[str, Any] = {} if longest is None else {"max_length": longest}
        if longest is not None and not are_texts(inputs):
            limit = {"processing_kwargs": WHOLE}
        only_text = list(getattr(first, "modalities", ["text"])) == ["text"]
        given: list[Any] = list(inputs) if only_text else for_library(inputs, first, longest)
        made = self.model.preprocess(given, prompt=self.settings.prompt(role), task=TASKS[role], **limit)
        tensors = {name: value for name, value in made.items() if isinstance(value, Tensor)}
        whole = {name: value if value.numel() else value.long() for name, value in tensors.items()}
        if not are_texts(inputs):
            refuse_too_long(whole, inputs, getattr(first, "config", None))
        kind = {} if only_text or "modality" not in made else {"modality": made["modality"]}
        return whole | kind | self._left_out(role)

    def _tower_identity(self, role: Role) -> list[object]:
        settings = self.settings
        tokenizer: Any = getattr(self._first_module(role), "tokenizer", None)
        words = tokenizer.backend_tokenizer.to_str() if getattr(tokenizer, "is_fast", False) else str(tokenizer)
        # digests of dense encoders never named their kind
        kind: list[object] = [] if settings.kind == "dense" else [settings.kind]
        kind += [] if settings.attention == "own" else [settings.attention]
        kind += [settings.query_form] if role == "query" and settings.query_form != "query" else []
        kind += self._how_pictures_are_read(role)
        added = [self.expander.fingerprint] if self.expander is not None and role == "passage" else []
        decided = [settings.prompt(role), settings.max_tokens(role), *settings.decisive, *kind, *added]
        return [*decided, _without_state(words)]

    def _how_pictures_are_read(self, role: Role) -> list[object]:
        """Sizes, patches and whatever else a picture goes through before the model sees it."""
        if self.settings.reads == "text":
            return []
        processor = getattr(getattr(self._first_module(role), "processor", None), "image_processor", None)
        return [self.settings.reads, *([] if processor is None else [processor.to_dict()])]

    def _all_batches(
        self, inputs: Sequence[Input], role: Role, batch_size: int
    ) -> Iterator[tuple[NDArray[np.int64], dict[str, Any]]]:
        """Rows and their features: texts, then pictures, then pictures with texts."""
        kinds = [kind_of(given) for given in inputs]
        for kind in sorted(set(kinds), key=lambda kind: (kind != "text", kind)):
            rows = np.array([row for row, own in enumerate(kinds) if own == kind], dtype=np.int64)
            some = [inputs[row] for row in rows]
            if are_texts(some):
                yield from ((rows[part], features) for part, features in self._batches(some, role, batch_size))
                continue
            for start in range(0, len(some), batch_size):
                part = slice(start, start + batch_size)
                yield rows[part], self._processed(some[part], role)

    def _batches(
        self, texts: Sequence[str], role: Role, batch_size: int
    ) -> Iterator[tuple[NDArray[np.int64], dict[str, Tensor]]]:
        """Rows and their features, longest first, so that a batch that does not fit into memory fails at once."""
        first, texts = self._first_module(role), self._expanded(texts, role)
        if not plain_text(first, role):
            order = np.argsort([-len(text) for text in texts], kind="stable")
            for rows in np.split(order, range(batch_size, len(order), batch_size)) if len(order) else []:
                yield rows, self._processed([texts[row] for row in rows], role)
            return
        tokens = self._tokens(texts, role)
        order = np.argsort([-len(ids) for ids in tokens["input_ids"]], kind="stable")
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = pad(first.tokenizer, {name: [tokens[name][row] for row in rows] for name in tokens})
            yield rows, batch | self._left_out(role)

    def _tokens(self, texts: Sequence[str], role: Role) -> dict[str, list[list[int]]]:
        """Token ids (and types) of each text, without padding."""
        tokenizer = self._first_module(role).tokenizer
        prompt = self.settings.prompt(role)
        limit = min(self.settings.max_tokens(role), tokenizer.model_max_length)
        tokens: dict[str, list[list[int]]] = {"input_ids": []}
        for start in range(0, len(texts), _BLOCK):
            block = texts[start : start + _BLOCK]
            made = tokenizer(
                [prompt + text for text in block], truncation=True, max_length=limit, return_attention_mask=False
            )
            for name, rows in made.items():
                tokens.setdefault(name, []).extend(rows)
        if not all(tokens["input_ids"]):
            raise DataError("an empty text has no vector in this encoder", "leave empty texts out")
        if self.expander is not None and role == "passage":
            append_ids(tokens, self.expander.tokens(texts), limit, {tokenizer.sep_token_id, tokenizer.eos_token_id})
        return tokens

    def _left_out(self, role: Role) -> dict[str, Tensor]:
        """How many tokens the prompt has, where the tower pools without them; sentence-transformers counts them."""
        prompt, tower = self.settings.prompt(role), self.tower(role)
        if not prompt or all(getattr(module, "include_prompt", True) for module in tower.modules()):
            return {}
        counted = self._first_module(role).preprocess(["-"], prompt=prompt).get("prompt_length")
        return {} if counted is None else {"prompt_length": torch.tensor([counted])}

    def _first_module(self, role: Role) -> Any:
        return next(iter(self.tower(role).children()))


def separate_towers(encoder: Encoder) -> Encoder:
    """The same encoder with a separate query tower, which can be trained while passage vectors stay fixed."""
    if encoder.settings.towers == "separate":
        return encoder
    passage = list(encoder.model.children())
    query = copy.deepcopy(passage)
    settings = encoder.settings.model_copy(update={"towers": "separate"})
    made = Encoder(routed(query, passage, encoder.model), settings, encoder.family)
    made.expander = encoder.expander
    return made


def routed(query: list[nn.Module], passage: list[nn.Module], like: BaseModel) -> BaseModel:
    model = type(like)(
        modules=[Router.for_query_document(query, passage, default_route="document")],
        prompts=dict(like.prompts),
        similarity_fn_name=like.similarity_fn_name,
        device=str(like.device),
    )
    return model.train(like.training)


def router_of(model: BaseModel) -> Router | None:
    first = model[0]
    return first if isinstance(first, Router) and set(TASKS.values()) <= set(first.sub_modules) else None


def _is_cut(module: nn.Module, role: Role) -> bool:
    """Whether a text is cut to the length that is asked for."""
    return isinstance(module, Transformer) and module.tokenizer is not None and not _augments(module, role)


def _augments(module: Transformer, role: Role) -> bool:
    """Whether texts of the role are filled up with mask tokens."""
    return bool(role == "query" and module.query_expansion)


def plain_text(module: nn.Module, role: Role) -> bool:
    """Whether text goes through an ordinary tokenizer, which can then be called without its wrapper."""
    return (
        isinstance(module, Transformer)
        and module.tokenizer is not None
        and module.processor is module.tokenizer
        and list(module.modality_config) == ["text"]
        and not _augments(module, role)
        and not module.processing_kwargs
    )


def _known(role: Role) -> Role:
    if role not in TASKS:
        raise ConfigError(f"an encoder has no role '{role}'", did_you_mean(role, TASKS))
    return role


def _refuse_not_finite(encoded: Encoded, inputs: Sequence[Input]) -> None:
    bad = (~encoded.values.isfinite()).flatten(1).any(1).nonzero()
    if len(bad):
        first, what = inputs[int(bad[0])], "texts" if are_texts(inputs) else "inputs"
        raise DataError(
            f"the encoder gave a vector that is not finite (NaN) for {len(bad)} of {len(inputs)} {what}, "
            f"the first: {first.image.name if isinstance(first, Seen) else repr(first[:60])}",
            "its weights are damaged: retrain it or load another checkpoint",
        )


def _without_state(tokenizer: str) -> str:
    """A fast tokenizer as text, without the truncation and padding state of its last call."""
    try:
        content = json.loads(tokenizer)
    except ValueError:
        return tokenizer
    return json.dumps(content | {"truncation": None, "padding": None}, sort_keys=True)


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of every weight on which vectors depend."""
    digest = hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        if _UNUSED in name:
            continue
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        flat = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


def _digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
