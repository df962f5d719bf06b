"""Multi-vector encoders: a vector a token, compared by late interaction (ColBERT, Khattab and Zaharia 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.util import maxsim
from tokenizers import AddedToken
from torch import Tensor, nn
from torch.nn import functional

from retrieval.encoders.assembly import backbone_of, modules_of, prompts_of, set_lengths, shared_settings
from retrieval.encoders.config import EncoderChoice, EncoderSettings
from retrieval.encoders.encoder import router_of
from retrieval.encoders.family import Encoded, single
from retrieval.encoders.multivector_config import MultiVectorChoice, MultiVectorEncoderSettings
from sleuth.errors import ArtifactError
from sleuth.settings import validate

_TOKENS = "token_embeddings"


@dataclass(frozen=True, slots=True)
class MultiVector:
    kind: str = "multivector"

    def read(self, outputs: Mapping[str, Tensor], settings: EncoderSettings) -> Encoded:
        vectors = single(outputs[_TOKENS])[..., : settings.width]
        unit = functional.normalize(vectors, dim=-1) if settings.unit_length else vectors
        return Encoded(unit, outputs["attention_mask"].bool())

    def scores(self, queries: Encoded, passages: Encoded) -> Tensor:
        """MaxSim: for each token of a query its largest product with a token of the passage, summed."""
        found: Tensor = maxsim(queries.values, passages.values, queries.mask, passages.mask)
        return found


MULTIVECTOR = MultiVector()


class MultiVectorAssembly:
    """MultiVectorEncoder: backbone, linear projection, mask of the tokens that count and normalisation."""

    family = MULTIVECTOR

    def new(self, settings: EncoderSettings, device: str | None) -> BaseModel:
        assert isinstance(settings, MultiVectorEncoderSettings)
        first = backbone_of(settings)
        if first.module_output_name != _TOKENS:
            raise ArtifactError(
                f"{settings.backbone} gives one vector a text or picture, not several", "make a dense encoder of it"
            )
        _mark(first.tokenizer, settings)
        size = first.get_embedding_dimension()
        head = Dense(
            size, settings.dimensions, bias=False, activation_function=nn.Identity(), module_input_name=_TOKENS
        )
        modules: list[nn.Module] = [first, head.to(next(first.parameters()).dtype), MultiVectorMask()]
        if settings.normalise:
            modules.append(Normalize(module_input_name=_TOKENS))
        model = MultiVectorEncoder(modules=modules, prompts=prompts_of(settings), device=device)
        _adjust(model, settings)
        return model

    def open(self, name: str, device: str | None, model_kwargs: dict[str, Any]) -> BaseModel:
        return MultiVectorEncoder(name, device=device, model_kwargs=model_kwargs)

    def describe(self, model: BaseModel, name: str) -> EncoderSettings:
        if model.similarity_fn_name != "maxsim":
            raise ArtifactError(f"{name} compares by {model.similarity_fn_name}", "only maxsim can be searched")
        everything = modules_of(model)
        shared = shared_settings(model, name)
        expansion = next((m.query_expansion for m in everything if isinstance(m, Transformer)), None) or {}
        length = int(expansion.get("length", 0))
        fixed = expansion.get("strategy") == "fixed"
        return MultiVectorEncoderSettings(
            **{**shared, "query_max_tokens": length if fixed else max(shared["query_max_tokens"], length)},
            dimensions=int(model.get_embedding_dimension()),
            normalise=any(isinstance(m, Normalize) for m in everything),
            expand_to=length,
            attend_to_expansion=bool(expansion.get("attend")),
            expansion_token=expansion.get("token"),
            skipped_tokens=next((m.skiplist_words for m in everything if isinstance(m, MultiVectorMask)), []),
        )

    def check(self, model: BaseModel, own: EncoderSettings, wanted: EncoderChoice) -> None:
        """Also sets what is wanted in the model, which fills up queries and leaves out tokens itself."""
        assert isinstance(own, MultiVectorEncoderSettings)
        assert isinstance(wanted, MultiVectorChoice)
        full, asked = int(model.get_embedding_dimension()), wanted.dimensions or own.dimensions
        if asked > full:
            raise ArtifactError(f"{wanted.backbone} has vectors of {full} dimensions, not {asked}", "choose fewer")
        if own.normalise and wanted.normalise is False:
            raise ArtifactError(f"{wanted.backbone} normalises its vectors", "leave normalise out of its settings")
        if asked < full:
            _narrow(model, asked)
        changes = {key: value for key, value in wanted.chosen.items() if key != "backbone"}
        _adjust(model, validate(type(own), {**own.model_dump(), **changes}, wanted.backbone))


MULTIVECTOR_ASSEMBLY = MultiVectorAssembly()


def _adjust(model: BaseModel, settings: EncoderSettings) -> None:
    """Set in both towers how queries are filled up and which tokens are left out, where anyone's loader finds it."""
    assert isinstance(settings, MultiVectorEncoderSettings)
    for first in (m for m in model.modules() if isinstance(m, Transformer)):
        first.query_expansion = None
        set_lengths(first, settings)
        if settings.filled_to:
            first.query_expansion = {
                "strategy": "fixed" if settings.filled_to == settings.query_max_tokens else "min",
                "attend": settings.attend_to_expansion,
                "token": settings.expansion_token,
                "length": settings.filled_to,
            }
    for mask in (m for m in model.modules() if isinstance(m, MultiVectorMask)):
        known = set(model.tokenizer.get_vocab())
        mask.skiplist_words = [word for word in settings.skipped_tokens if word in known]
        mask.resolve_with_tokenizer(model.tokenizer)


def _narrow(model: BaseModel, dimensions: int) -> None:
    """Keep the first ``dimensions`` of each tower's projection, so that a saved model has no others anywhere."""
    router = router_of(model)
    for tower in [model] if router is None else router.sub_modules.values():
        last = next((m for m in reversed(list(tower.children())) if isinstance(m, Dense)), None)
        if last is None or last.use_residual:
            continue  # `MultiVector.read` cuts
        linear = last.linear
        linear.weight = nn.Parameter(linear.weight.detach()[:dimensions].clone())
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias.detach()[:dimensions].clone())
        linear.out_features = last.out_features = dimensions


def _mark(tokenizer: Any, settings: EncoderSettings) -> None:
    """Make a prompt's first word one token where the vocabulary has it whole, such as BERT's ``[unused0]``."""
    words = [prompt.split()[0] for prompt in (settings.query_prompt, settings.passage_prompt) if prompt.split()]
    whole = [word for word in words if word in tokenizer.get_vocab() and tokenizer.tokenize(word) != [word]]
    if whole:
        marks: list[Any] = [AddedToken(word, normalized=False, special=True) for word in whole]
        tokenizer.add_special_tokens({"additional_special_tokens": marks})
