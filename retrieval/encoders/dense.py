"""Dense encoders: one vector per text, compared by inner product (Karpukhin et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import Tensor, nn
from torch.nn import functional

from retrieval.encoders.assembly import backbone_of, modules_of, prompts_of, shared_settings
from retrieval.encoders.config import DenseChoice, DenseEncoderSettings, EncoderChoice, EncoderSettings
from retrieval.encoders.encoder import router_of
from retrieval.encoders.family import Encoded, single
from sleuth.errors import ArtifactError


@dataclass(frozen=True, slots=True)
class Dense:
    kind: str = "dense"

    def read(self, outputs: Mapping[str, Tensor], settings: EncoderSettings) -> Encoded:
        vectors = single(outputs["sentence_embedding"])[:, : settings.width]
        return Encoded(functional.normalize(vectors, dim=-1) if settings.unit_length else vectors)

    def scores(self, queries: Encoded, passages: Encoded) -> Tensor:
        return queries.values @ passages.values.T


DENSE = Dense()


class DenseAssembly:
    """SentenceTransformer: backbone, pooling and, for unit length, normalisation."""

    family = DENSE

    def new(self, settings: EncoderSettings, device: str | None) -> BaseModel:
        assert isinstance(settings, DenseEncoderSettings)
        if settings.pooling == "other":
            raise ArtifactError(
                f"pooling of a new encoder on {settings.backbone} is not set", "choose cls, mean, lasttoken"
            )
        first = backbone_of(settings)
        modules: list[nn.Module] = [first]
        if first.module_output_name != "sentence_embedding":  # CLIP and SigLIP give one vector themselves
            size = first.get_embedding_dimension()
            modules.append(Pooling(size, settings.pooling, settings.include_prompt))
        if settings.unit_length:
            modules.append(Normalize())
        return SentenceTransformer(
            modules=modules, prompts=prompts_of(settings), similarity_fn_name=settings.similarity, device=device
        )

    def open(self, name: str, device: str | None, model_kwargs: dict[str, Any]) -> BaseModel:
        return SentenceTransformer(name, device=device, model_kwargs=model_kwargs)

    def describe(self, model: BaseModel, name: str) -> EncoderSettings:
        similarity = str(model.similarity_fn_name)
        if similarity not in ("dot", "cosine"):
            raise ArtifactError(f"{name} compares by {similarity}", "only dot and cosine can be searched")
        everything = modules_of(model)
        pooling = next((m.pooling_mode for m in everything if isinstance(m, Pooling)), "other")
        return DenseEncoderSettings(
            **shared_settings(model, name),
            pooling=pooling if isinstance(pooling, str) else "other",
            normalise=any(isinstance(m, Normalize) for m in everything),
            similarity=similarity,
            include_prompt=all(m.include_prompt for m in everything if isinstance(m, Pooling)),
            dimensions=getattr(model, "truncate_dim", None),
        )

    def check(self, model: BaseModel, own: EncoderSettings, wanted: EncoderChoice) -> None:
        assert isinstance(own, DenseEncoderSettings)
        assert isinstance(wanted, DenseChoice)
        if wanted.pooling not in (None, own.pooling):
            raise ArtifactError(f"{wanted.backbone} pools by {own.pooling}", "leave pooling out of its settings")
        if wanted.normalise is False and any(isinstance(m, Normalize) for m in modules_of(model)):
            raise ArtifactError(f"{wanted.backbone} normalises its vectors", "leave normalise out of its settings")
        full, asked = int(model.get_embedding_dimension()), wanted.dimensions or own.dimensions or 0
        if asked > full:
            raise ArtifactError(f"{wanted.backbone} has vectors of {full} dimensions, not {asked}", "choose fewer")
        chosen = own.model_copy(update=wanted.model_dump(exclude_none=True, include={*_IN_THE_MODEL}))
        if chosen != own or chosen.unit_length:  # cosine is of unit vectors here, and so in what is saved
            _apply(model, chosen)


_IN_THE_MODEL = ("normalise", "similarity", "include_prompt", "dimensions")


def _apply(model: BaseModel, chosen: DenseEncoderSettings) -> None:
    """Put the settings into a loaded model, where plain sentence-transformers reads them."""
    assert isinstance(model, SentenceTransformer)
    for module in model.modules():
        if isinstance(module, Pooling):
            module.include_prompt = chosen.include_prompt
    model.similarity_fn_name = chosen.similarity
    model.truncate_dim = chosen.dimensions
    if chosen.unit_length and not any(isinstance(module, Normalize) for module in model.modules()):
        router = router_of(model)
        for tower in [model] if router is None else router.sub_modules.values():
            tower.append(Normalize())


DENSE_ASSEMBLY = DenseAssembly()
