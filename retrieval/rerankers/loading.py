"""Loads rerankers: cross-encoders with one label, and language models whose answer is yes or no.

A language model may be a published transformers folder, asked by a named template, or one that sentence-transformers
saved, which carries its own template and instruction.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.util import is_sentence_transformer_model
from transformers import AutoConfig

from hub.adapters import adapter_base
from hub.models import ModelKind, loading, resolve_model
from retrieval.encoders.quiet import quiet_transformers
from retrieval.rerankers.templates import TEMPLATES, Template, TemplateName
from sleuth.errors import ArtifactError, ConfigError

CROSS_ENCODER = ModelKind("cross-encoder", ArtifactError)
_PROMPT = "instruction"
_LONGEST = 8192
"""Tokens of a pair where neither settings nor tokenizer limit it: Qwen3-Reranker's own choice."""


def load_reranker(
    model: str | Path,
    *,
    template: TemplateName | None = None,
    instruction: str | None = None,
    max_tokens: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
) -> CrossEncoder:
    """The reranker in a folder or at a hub name. Raises ArtifactError or ConfigError where it cannot score pairs."""
    name = _checked(str(model))
    loaded = open_cross_encoder(name, template=template, max_tokens=max_tokens, dtype=dtype, device=device)
    if not _has_head(loaded):
        raise ArtifactError(
            f"{model} is no cross-encoder: its weights are of {', '.join(loaded.config.architectures)}, without a head",
            "train one with: sleuth train-retriever",
        )
    if loaded.num_labels != 1:
        raise ConfigError(f"{model} has {loaded.num_labels} labels, a reranker must have one", "choose another model")
    ask(loaded, str(model), instruction)
    return loaded


def open_cross_encoder(
    name: str,
    *,
    template: TemplateName | None = None,
    max_tokens: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    labels: int | None = None,
) -> CrossEncoder:
    """A cross-encoder as sentence-transformers loads it, with ``template`` in place of the model's own."""
    chosen = None if template is None else TEMPLATES[template]
    with loading(name, CROSS_ENCODER), quiet_transformers():
        if template is not None and not _speaks(name):
            raise ConfigError(f"template does nothing for {name}, which is no language model", "leave template out")
        loaded = CrossEncoder(
            name,
            num_labels=labels,
            max_length=max_tokens,
            device=device,
            model_kwargs=None if dtype is None else {"dtype": getattr(torch, dtype)},
            processor_kwargs=None if chosen is None else {"chat_template": chosen.chat()},
        )
    if chosen is not None:
        set_answers(loaded, name, chosen)
    if is_asked(loaded):
        _make_ready(loaded, name)
    return loaded


def set_answers(model: CrossEncoder, name: str, template: Template) -> None:
    """Read the answer off the template's words. Raises ConfigError where the tokenizer has no token for one."""
    head = next((module for module in model.children() if isinstance(module, LogitScore)), None)
    if head is None:
        return  # a classification head made of the two rows of the vocabulary
    tokenizer = model.tokenizer
    for word, attribute in ((template.yes, "true_token_id"), (template.no, "false_token_id")):
        tokens = tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id:
            raise ConfigError(f"the tokenizer of {name} has no single token for '{word}'", "choose another model")
        setattr(head, attribute, tokens[0])


def is_asked(model: CrossEncoder) -> bool:
    """Whether pairs are put into a template, as for a language model."""
    return any(isinstance(module, LogitScore) for module in model.children()) or "message" in model.modalities


def ask(model: CrossEncoder, name: str, instruction: str | None) -> None:
    """Ask ``model`` with ``instruction`` from now on; it is saved with it. None: as before."""
    if instruction is None:
        return
    if not is_asked(model):
        raise ConfigError(f"instruction does nothing for {name}, which is no language model", "leave instruction out")
    model.prompts = {**model.prompts, _PROMPT: instruction}
    model.default_prompt_name = _PROMPT


def prompt_of(model: CrossEncoder) -> str | None:
    """The instruction that ``model`` is asked with, where it is not the template's own."""
    name = model.default_prompt_name
    return None if name is None else model.prompts.get(name)


def _make_ready(model: CrossEncoder, name: str) -> None:
    """Check that the template holds a pair and leaves room for it; a padding token is found if there is none."""
    first: Any = model[0]
    tokenizer = model.tokenizer
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    failure = _misfit(model, name)
    if failure is not None:
        raise ConfigError(
            f"the chat template of {name} has no place for query and passage: {failure}",
            f"set template: {' or '.join(TEMPLATES)}",
        )
    if (tokenizer.model_max_length or 0) > 10**6:
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _LONGEST
        model.max_seq_length = min(positions, _LONGEST)
    limit = int(model.max_seq_length)
    needed = int(first.preprocess([("", "")])["attention_mask"].sum())
    if needed >= limit:
        raise ConfigError(f"max_tokens {limit} leaves no room: the template of {name} takes {needed}", "raise it")


def _misfit(model: CrossEncoder, name: str) -> str | None:
    """Why the model's own template does not ask about a pair; None if it does.

    A chat's template puts any role between its marks: a language model that nobody made a reranker would be asked
    nothing, and give scores all the same.
    """
    first: Any = model[0]
    saved = is_sentence_transformer_model(name)
    if saved and "message" not in model.modalities:
        return None  # it was saved to read pairs without a template
    failure: str | None = first.input_formatter.pair_roles_failure({})
    roles = all(role in str(model.tokenizer.chat_template) for role in ("query", "document"))
    return failure if failure or saved or roles else "it is that of a chat"


def _checked(name: str) -> str:
    looks_local = Path(name).is_absolute() or name.startswith(".") or Path(name).exists()
    is_model = (Path(name) / "config.json").is_file() or Path(name).suffix == ".gguf"
    if looks_local and not is_model and adapter_base(name, CROSS_ENCODER) is None:
        raise ArtifactError(f"{name} is not a cross-encoder: it has no config.json", "give its folder or hub name")
    return resolve_model(name, CROSS_ENCODER)


def is_causal(name: str) -> bool:
    """Whether ``name`` is a causal language model with its vocabulary. Raises ArtifactError where there is no model."""
    with loading(name, CROSS_ENCODER), quiet_transformers():
        found = getattr(AutoConfig.from_pretrained(name), "architectures", None) or [""]
    return str(found[0]).endswith("ForCausalLM")


def _speaks(name: str) -> bool:
    """Whether ``name`` is a language model, or one whose answer was made a classification head."""
    if is_causal(name):
        return True
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name).sep_token is None


def _has_head(model: Any) -> bool:
    """Whether the classification head has trained weights; a missing one would be initialised at random."""
    architectures = getattr(model.config, "architectures", None) or ()
    headed = any("ForSequenceClassification" in name for name in architectures)
    return headed or not architectures or any(isinstance(module, LogitScore) for module in model.children())
