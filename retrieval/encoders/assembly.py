"""How a family's model is put together from a backbone, and what all families do on the way."""

from __future__ import annotations

import copy
from collections.abc import Set as AbstractSet
from typing import Any, Protocol

import torch
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Transformer

from hub.adapters import adapter_base
from hub.models import ModelKind
from retrieval.encoders.attention import is_bidirectional, make_bidirectional
from retrieval.encoders.config import EncoderChoice, EncoderKind, EncoderSettings
from retrieval.encoders.encoder import TASKS, plain_text, router_of
from retrieval.encoders.family import Family
from retrieval.encoders.lengths import positions_of
from retrieval.encoders.page_trunk import MODEL_TYPE, register
from retrieval.encoders.tokenizer import plain_tokenizer
from sleuth.errors import ArtifactError
from sleuth.plugins import load_object

ENCODER = ModelKind("encoder", ArtifactError)

_PASSAGE_PROMPTS = ("document", "passage", "corpus")
_TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
"""Plain text only: if sentence-transformers found a chat template, it would apply it to every text."""


class Assembly(Protocol):
    """One family's models in sentence-transformers. Each method's errors are ArtifactErrors."""

    @property
    def family(self) -> Family: ...

    def new(self, settings: EncoderSettings, device: str | None) -> BaseModel:
        """A model with one tower on ``settings.backbone``."""
        ...

    def open(self, name: str, device: str | None, model_kwargs: dict[str, Any]) -> BaseModel:
        """The model in a folder or at a hub name of sentence-transformers."""
        ...

    def describe(self, model: BaseModel, name: str) -> EncoderSettings:
        """The settings of a model that others saved."""
        ...

    def check(self, model: BaseModel, own: EncoderSettings, wanted: EncoderChoice) -> None:
        """Refuse settings of the family that these weights cannot have, and put into the model those that they can."""
        ...


def assembly_of(kind: str) -> Assembly:
    register()
    choice = EncoderKind.class_for({"kind": kind, "backbone": ""})
    assert issubclass(choice, EncoderChoice)
    made: Assembly = load_object(choice.ASSEMBLY)
    return made


def backbone_of(settings: EncoderSettings, **how: Any) -> Transformer:
    """The backbone with its lengths and tokenizer set; for an adapter, its base model with the adapter added.

    ``how`` replaces arguments of sentence-transformers' ``Transformer``.
    """
    adapter = adapter_base(settings.backbone, ENCODER)
    usual: dict[str, Any] = {"modality_config": copy.deepcopy(_TEXT), "module_output_name": "token_embeddings"}
    if "transformer_task" in how or settings.reads != "text":
        usual = {}
    first = Transformer(
        adapter or settings.backbone, model_kwargs={"dtype": getattr(torch, settings.dtype)}, **usual, **how
    )
    if first.config.model_type == MODEL_TYPE and settings.reads != "text":
        first.modality_config = {kind: dict(_TEXT["text"]) for kind in ("text", "image", ("image", "text"))}
        first.input_formatter.supported_modalities = list(first.modality_config)
    modalities = {*getattr(first, "modalities", ())}
    if settings.reads != "text" and ("image", "text") in modalities and "image" not in modalities:
        _take_alone(first, settings)
    check_reads(first, settings)
    image_by = first.modality_config.get("image", {}).get("method")
    if settings.reads != "text" and image_by == "forward" and not _combines(first):
        raise _no_template(settings)
    if adapter:
        first.model.load_adapter(settings.backbone)
    if settings.attention == "bidirectional":
        make_bidirectional(first.model, settings.backbone)
    limit_tokens(first, settings)
    return first


def _take_alone(first: Any, settings: EncoderSettings) -> None:
    """Let a model take a picture or a text alone, by its chat template, which the library gives it together only.

    PaliGemma is such a one. Raises ArtifactError if it has no template.
    """
    if not getattr(first.processor, "chat_template", None):
        raise _no_template(settings)
    how = first.modality_config["image", "text"]
    first.modality_config = {**first.modality_config, "text": dict(how), "image": dict(how)}  # it is the library's own
    first.input_formatter.supported_modalities = list(first.modality_config)


def _no_template(settings: EncoderSettings) -> ArtifactError:
    return ArtifactError(f"{settings.backbone} has no chat template to put pictures into", "give its processor one")


def check_reads(first: Any, settings: EncoderSettings) -> None:
    """Raise ArtifactError if a model whose ``first`` module it is cannot take what ``settings`` say is read."""
    if settings.reads == "text":
        return
    if "image" not in getattr(first, "modalities", ()):
        raise ArtifactError(f"{settings.backbone} reads no pictures", "set reads: text, or choose one that does")
    if settings.reads == "both" and not _combines(first):
        raise ArtifactError(f"{settings.backbone} reads a text or a picture, not both at once", "set reads: image")


def _combines(first: Any) -> bool:
    """Whether a picture and a text can be one input."""
    return bool({"message", ("image", "text")} & {*first.modalities})


def limit_tokens(first: Any, settings: EncoderSettings) -> None:
    """Set tokenizer and lengths in the module itself, where plain sentence-transformers reads them."""
    longest = positions_of(first.config) or 10**6
    wanted = max(settings.query_max_tokens, settings.passage_max_tokens)
    if wanted > longest:
        raise ArtifactError(f"{settings.backbone} reads at most {longest} tokens, not {wanted}", "lower the max_tokens")
    if first.processor is first.tokenizer or settings.reads == "text":
        first.processor = plain_tokenizer(first.tokenizer, append_eos=settings.append_eos)
    elif settings.append_eos:
        raise ArtifactError(f"EOS is not appended to what {settings.backbone} reads", "leave append_eos out")
    set_lengths(first, settings)
    first.tokenizer.model_max_length = wanted if first.document_length else longest


def set_lengths(first: Any, settings: EncoderSettings) -> None:
    """Set how long queries and passages are in plain sentence-transformers.

    It would cut the tokens of pictures too, so passages have no length there if the model makes tokens of pictures.
    """
    ways = first.modality_config
    tokens = ways.get("message", ways.get("image", {})).get("method") == "forward"
    whole = settings.reads != "text" and tokens and first.config.model_type != MODEL_TYPE
    first.query_length = settings.query_max_tokens
    first.document_length = None if whole else settings.passage_max_tokens


def prompts_of(settings: EncoderSettings) -> dict[str, str]:
    """By sentence-transformers' names."""
    return {"query": settings.query_prompt, "document": settings.passage_prompt}


def modules_of(model: BaseModel) -> list[Any]:
    """The modules of the passage tower, and those of the model around it."""
    router = router_of(model)
    tower = list(router.sub_modules[TASKS["passage"]] if router is not None else model.children())
    return [*tower, *model.children()]


def shared_settings(model: BaseModel, name: str) -> dict[str, Any]:
    """What of the settings of a model that others saved is the same in every family."""
    first, router = modules_of(model)[0], router_of(model)
    asking = first if router is None else router.sub_modules[TASKS["query"]][0]
    prompts = {key: prompt or "" for key, prompt in model.prompts.items()}
    return {
        "backbone": name,
        "query_prompt": prompts.get("query", ""),
        "passage_prompt": next((prompts[key] for key in _PASSAGE_PROMPTS if prompts.get(key)), ""),
        "query_max_tokens": _longest(asking, "query_length"),
        "passage_max_tokens": _longest(first, "document_length"),
        "append_eos": _ends_in_eos(getattr(first, "tokenizer", None)),
        "towers": "shared" if router is None else "separate",
        "attention": "bidirectional" if is_bidirectional(getattr(first, "config", None)) else "own",
        "reads": "image" if "image" in getattr(first, "modalities", ()) else "text",
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }


def _longest(first: Any, own: str) -> int:
    return int(getattr(first, own, None) or getattr(first, "max_seq_length", None) or 512)


def _ends_in_eos(tokenizer: Any) -> bool:
    eos = getattr(tokenizer, "eos_token_id", None)
    return eos is not None and tokenizer("a")["input_ids"][-1:] == [eos]


def apply_settings(model: BaseModel, settings: EncoderSettings, changed: AbstractSet[str]) -> None:
    """Put what of ``settings`` was ``changed`` into a loaded model, where plain sentence-transformers reads it.

    Raises ArtifactError for what these weights cannot have.
    """
    if "reads" in changed:
        check_reads(modules_of(model)[0], settings)
    if "attention" in changed:
        for module in model.modules():
            if isinstance(module, Transformer) and settings.attention == "bidirectional":
                make_bidirectional(module.model, settings.backbone)
            elif isinstance(module, Transformer):
                raise ArtifactError(f"{settings.backbone} reads in both directions", "leave attention out")
    if changed & {"query_max_tokens", "passage_max_tokens", "append_eos"}:
        for module in model.modules():
            if isinstance(module, Transformer) and plain_text(module, "passage"):
                if not settings.append_eos and "append_eos" in changed and _ends_in_eos(module.tokenizer):
                    raise ArtifactError(f"{settings.backbone} appends EOS itself", "leave append_eos out")
                limit_tokens(module, settings)
