"""The part of a retriever that learns, of any family, and the same retriever with that part exchanged."""

from __future__ import annotations

from pathlib import Path

from retrieval.combine.config import RerankSettings
from retrieval.config import RetrieverSettings
from retrieval.encoders.config import EncoderChoice, EncoderKind
from retrieval.encoders.index_config import EncodedIndexSettings
from retrieval.training.start_config import EncoderStart
from sleuth.errors import ConfigError
from sleuth.query_forms import QueryForm

Learner = EncodedIndexSettings | RerankSettings


def learner_of(retriever: RetrieverSettings, reranker: bool) -> Learner:
    """The index whose encoder learns, or the reranker that does, at any depth. Raises ValueError if it is not one."""
    wanted = RerankSettings if reranker else EncodedIndexSettings
    found = [part for part in _parts(retriever) if isinstance(part, wanted)]
    noun = "reranker" if reranker else "index of encoded passages"
    if len(found) != 1:
        raise ValueError(f"the retriever has {len(found)} parts of the kind {noun}, and one of them is to learn")
    one = found[0]
    assert isinstance(one, EncodedIndexSettings | RerankSettings)
    if isinstance(one, EncodedIndexSettings) and one.corpus is None:
        raise ValueError(f"retriever.corpus is missing: {one.index} is made anew from it when its encoder has learned")
    return one


def weights_of(learner: Learner) -> str:
    """Where what learns lies: the folder of its encoder, or of the reranker. Raises ConfigError."""
    if isinstance(learner, RerankSettings):
        if not isinstance(learner.model, str):
            raise ConfigError("an encoder as a reranker does not learn from rows", "name a reranker's folder as model")
        return learner.model
    chosen = learner.encoder
    if chosen is None:
        from retrieval.encoders.indexes import read_encoded_manifest

        source = read_encoded_manifest(learner.index_of(), learner.index)["encoder"]["source"]
        if source is None:
            raise ConfigError(f"{learner.index} does not say where its encoder lies", "set retriever.encoder")
        return str(source)
    if not isinstance(chosen, EncoderChoice):
        raise ConfigError(f"an encoder of kind {chosen.kind} is trained nowhere here", "choose another encoder")
    return chosen.backbone


def start_of(learner: EncodedIndexSettings, form: QueryForm) -> EncoderStart:
    """What a training of the learner's encoder begins with: its weights, as the config opens them, and the form."""
    chosen = learner.encoder.chosen if isinstance(learner.encoder, EncoderChoice) else {}
    changed = {name: value for name, value in chosen.items() if name != "backbone"}
    return EncoderStart(backbone=weights_of(learner), settings={**changed, "query_form": form})


def with_learned(retriever: RetrieverSettings, learner: Learner, weights: Path, index: Path) -> RetrieverSettings:
    """``retriever`` with the weights of ``learner`` exchanged; an encoder's passages are in ``index``."""
    if retriever is learner:
        if isinstance(learner, RerankSettings):
            return learner.model_copy(update={"model": str(weights)})
        encoder = EncoderKind.of(**{**_kept(learner), "backbone": str(weights)})
        return learner.model_copy(update={"encoder": encoder, "index": index})
    changes: dict[str, object] = {}
    for name in type(retriever).model_fields:
        value = getattr(retriever, name)
        if isinstance(value, RetrieverSettings):
            changes[name] = with_learned(value, learner, weights, index)
        elif isinstance(value, list | tuple) and any(isinstance(part, RetrieverSettings) for part in value):
            changes[name] = [with_learned(part, learner, weights, index) for part in value]
    return retriever.model_copy(update=changes)


def _kept(learner: EncodedIndexSettings) -> dict[str, object]:
    """What is said of where the encoder runs; all else is saved with its weights."""
    kept: dict[str, object] = {"kind": learner.kind}
    device = getattr(learner.encoder, "device", None)
    return kept | ({"device": device} if device else {})


def _parts(retriever: RetrieverSettings) -> list[RetrieverSettings]:
    return [retriever, *(part for inside in retriever.inside for part in _parts(inside))]
