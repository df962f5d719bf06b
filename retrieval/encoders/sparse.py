"""Learned sparse encoders: a weight for each word of the vocabulary, compared by inner product.

SPLADE is sentence-transformers' own modules throughout; uniCOIL and DeepImpact end in `TermImpact`. Queries that need
no model are its ``Router`` with a ``SparseStaticEmbedding`` on the query side.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling
from sentence_transformers.util import select_max_active_dims
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from hub.adapters import adapter_base
from retrieval.corpus import BadRow, read_rows
from retrieval.encoders.assembly import ENCODER, backbone_of, modules_of, prompts_of, shared_settings
from retrieval.encoders.config import EncoderChoice, EncoderSettings
from retrieval.encoders.encoder import router_of
from retrieval.encoders.family import Encoded, single
from retrieval.encoders.impact import TermImpact
from retrieval.encoders.sparse_config import Head, Queries, SparseChoice, SparseEncoderSettings
from retrieval.passages import passage_text
from sleuth.errors import ArtifactError

_BLOCK = 1024
_OURS = {f"{TermImpact.__module__}.{TermImpact.__qualname__}": TermImpact}


@dataclass(frozen=True, slots=True)
class Sparse:
    kind: str = "sparse"

    def read(self, outputs: Mapping[str, Tensor], settings: EncoderSettings) -> Encoded:
        weights = single(outputs["sentence_embedding"])
        most = settings.max_terms if isinstance(settings, SparseEncoderSettings) else None
        return Encoded(weights if most is None else select_max_active_dims(weights, most))

    def scores(self, queries: Encoded, passages: Encoded) -> Tensor:
        return queries.values @ passages.values.T


SPARSE = Sparse()


class SparseAssembly:
    """SparseEncoder: backbone, what is left out, and the head that weighs words."""

    family = SPARSE

    def new(self, settings: EncoderSettings, device: str | None) -> BaseModel:
        assert isinstance(settings, SparseEncoderSettings)
        if settings.head == "other":
            raise ArtifactError(
                f"the head of a new encoder on {settings.backbone} is not set", "choose splade, unicoil"
            )
        modules = _splade(settings) if settings.head == "splade" else _impacts(settings)
        if settings.queries != "encoded":
            query = _static(modules[0], settings)
            modules = [Router.for_query_document([query], modules, default_route="document")]
        return SparseEncoder(
            modules=modules,
            prompts=prompts_of(settings),
            similarity_fn_name="dot",
            max_active_dims=settings.max_terms,
            device=device,
        )

    def open(self, name: str, device: str | None, model_kwargs: dict[str, Any]) -> BaseModel:
        # our own class is given, not imported by name: that would trust any code that a folder brings along
        model = SparseEncoder._load_with_module_classes(name, _OURS, device=device, model_kwargs=model_kwargs)
        for module in modules_of(model):
            if isinstance(module, SpladePooling) and module.embedding_dimension is None:
                module.embedding_dimension = int(modules_of(model)[0].config.vocab_size)
        return model

    def describe(self, model: BaseModel, name: str) -> EncoderSettings:
        if str(model.similarity_fn_name) != "dot":
            raise ArtifactError(f"{name} compares by {model.similarity_fn_name}", "a sparse index takes inner products")
        masks = [module for module in modules_of(model) if isinstance(module, MultiVectorMask)]
        return SparseEncoderSettings(
            **shared_settings(model, name),
            head=_head_of(model),
            queries=_queries_of(model),
            idf_corpus=name if _queries_of(model) == "idf" else None,
            special_tokens="masked" if any(mask.skiplist_words for mask in masks) else "pooled",
            max_terms=model.max_active_dims,
        )

    def check(self, model: BaseModel, own: EncoderSettings, wanted: EncoderChoice) -> None:
        assert isinstance(own, SparseEncoderSettings)
        assert isinstance(wanted, SparseChoice)
        if (wanted.max_terms or 0) > int(model.get_embedding_dimension()):
            raise ArtifactError(f"{wanted.backbone} has fewer words than max_terms {wanted.max_terms}", "choose fewer")
        for name in ("head", "queries", "idf_corpus", "special_tokens"):
            asked, has = getattr(wanted, name), getattr(own, name)
            if asked not in (None, has):
                raise ArtifactError(
                    f"{wanted.backbone} has {name}: {has}, not {asked}", f"leave {name} out of its settings"
                )


SPARSE_ASSEMBLY = SparseAssembly()


def _splade(settings: SparseEncoderSettings) -> list[nn.Module]:
    _check_masked_lm(settings.backbone)
    first = backbone_of(settings, transformer_task="fill-mask")
    size = int(first.config.vocab_size)
    pooling = SpladePooling("max", embedding_dimension=size)
    if settings.special_tokens == "pooled":
        return [first, pooling]
    # sentence-transformers' own mask, so that a saved model needs nothing of ours
    skipped = MultiVectorMask(sorted(_special(first.tokenizer)), skiplist_tasks=["query", "document"])
    return [first, skipped, pooling]


def _check_masked_lm(backbone: str) -> None:
    config = AutoConfig.from_pretrained(adapter_base(backbone, ENCODER) or backbone)
    known = config.architectures or ()
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and (not known or any(map(_has_head, known))):
        return
    raise ArtifactError(
        f"{backbone} has no masked-LM head, by which SPLADE weighs words: {', '.join(known) or type(config).__name__}",
        "choose a masked language model, or the head unicoil or deepimpact",
    )


def _has_head(architecture: str) -> bool:
    return architecture.endswith(("ForMaskedLM", "ForPreTraining", "WithLMHeadModel"))


def _special(tokenizer: Any) -> set[str]:
    """Special tokens that say nothing of a text; an unknown word does."""
    return {token for token in tokenizer.all_special_tokens if token != tokenizer.unk_token}


def _impacts(settings: SparseEncoderSettings) -> list[nn.Module]:
    first = backbone_of(settings)
    words: dict[str, int] = first.tokenizer.get_vocab()
    size = int(first.config.vocab_size)
    head = TermImpact(int(first.config.hidden_size), size, by_word=settings.head == "deepimpact")
    if settings.special_tokens == "masked":
        head.skipped[[words[token] for token in _special(first.tokenizer)]] = True
    head.continuing[[number for word, number in words.items() if number < size and _continues(word, words)]] = True
    return [first, head.to(getattr(torch, settings.dtype))]


def _continues(word: str, words: Mapping[str, int]) -> bool:
    """Whether a token continues a word, as word pieces mark it, or does not begin one, as byte pairs do."""
    for mark in ("Ġ", "▁"):
        if mark in words:
            return not word.startswith(mark)
    return word.startswith("##")


def _static(first: Transformer, settings: SparseEncoderSettings) -> SparseStaticEmbedding:
    """Query tokens with a weight each, [vocabulary]."""
    tokenizer = copy.deepcopy(first.tokenizer)
    tokenizer.model_max_length = settings.query_max_tokens
    size = int(first.config.vocab_size)
    if size != len(tokenizer.get_vocab()):
        raise ArtifactError(
            f"{settings.backbone} has {size} word vectors for {len(tokenizer.get_vocab())} tokens",
            "queries without a model need a backbone with one for each: set queries: encoded",
        )
    corpus = settings.idf_corpus if settings.queries != "tokens" else None
    weights = torch.ones(size) if corpus is None else _idf(corpus, tokenizer, size, settings.passage_max_tokens)
    return SparseStaticEmbedding(tokenizer, weights, frozen=settings.queries != "learned")


def _idf(corpus: str, tokenizer: Any, size: int, longest: int) -> Tensor:
    """Inverse document frequency of each token, [vocabulary]: ln(1 + (N - n + .5) / (n + .5)), as BM25 has it."""
    counts, total = np.zeros(size), 0
    texts = _texts(corpus)
    while block := list(islice(texts, _BLOCK)):
        rows = tokenizer(block, add_special_tokens=False, truncation=True, max_length=longest)["input_ids"]
        for row in rows:
            counts[np.unique(np.asarray(row, np.int64))] += 1
        total += len(block)
    return torch.from_numpy(np.log1p((total - counts + 0.5) / (counts + 0.5))).float()


def _texts(corpus: str) -> Iterator[str]:
    for row in read_rows(corpus):
        if not isinstance(row, BadRow):
            yield passage_text(row.passage)


def _head_of(model: BaseModel) -> Head:
    for module in modules_of(model):
        if isinstance(module, TermImpact):
            return "deepimpact" if module.by_word else "unicoil"
        if isinstance(module, SpladePooling) and module.pooling_strategy == "max":
            return "splade" if module.activation_function == "relu" else "other"
    return "other"


def _queries_of(model: BaseModel) -> Queries:
    router = router_of(model)
    query = None if router is None else next(iter(router.sub_modules["query"]))
    if not isinstance(query, SparseStaticEmbedding):
        return "encoded"
    if not query.frozen:
        return "learned"
    return "tokens" if math.isclose(float(query.weight.std()), 0.0) else "idf"
