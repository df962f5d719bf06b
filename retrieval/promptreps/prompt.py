"""Turns texts into prompts as token ids: the chat template is the model's own, and a text cannot forge its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retrieval.encoders.config import Role
from retrieval.promptreps.config import TEXT, PromptRepsChoice
from sleuth.errors import ArtifactError, DataError, first_line

_HERE = "<<the text stands here>>"


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids around a text, and how many of its own are kept."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    longest: int

    def ids(self, tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
        """The prompt of each text. Special tokens in a text are plain characters. Raises DataError for no text."""
        if not all(text.strip() for text in texts):
            raise DataError("an empty text cannot be asked about", "leave empty texts out")
        if not texts:
            return []
        made = tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            truncation=True,
            max_length=self.longest,
            return_attention_mask=False,
        )
        return [[*self.before, *ids[: self.longest], *self.after] for ids in made["input_ids"]]


def prompt_of(tokenizer: Any, settings: PromptRepsChoice, role: Role, context: int | None) -> Prompt:
    """The prompt of a role. Raises ArtifactError where the model has no chat template, or too short a context."""
    if not tokenizer.chat_template:
        raise ArtifactError(
            f"{settings.backbone} has no chat template, so it cannot be asked for a word", "choose an instruct model"
        )
    rendered = _rendered(tokenizer, settings, settings.template(role).replace(TEXT, _HERE)) + settings.answer
    before, found, after = rendered.partition(_HERE)
    if not found or _HERE in after:
        raise ArtifactError(f"the chat template of {settings.backbone} does not show what is asked", "choose another")
    ids = [tuple(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (before, after)]
    longest = settings.max_tokens(role)
    needed = sum(map(len, ids)) + longest
    if context is not None and needed > context:
        raise ArtifactError(
            f"{settings.backbone} reads {context} tokens, a {role} of {longest} tokens in its prompt needs {needed}",
            f"lower {role}_max_tokens",
        )
    return Prompt(ids[0], ids[1], longest)


def _rendered(tokenizer: Any, settings: PromptRepsChoice, question: str) -> str:
    user = {"role": "user", "content": question}
    system = {"role": "system", "content": settings.system_prompt}
    how = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    try:
        return str(tokenizer.apply_chat_template([*([system] if settings.system_prompt else []), user], **how))
    except Exception as error:  # noqa: BLE001 - a template may refuse a system prompt with anything
        if not settings.system_prompt:
            raise _no_template(settings, error) from None
    user = {"role": "user", "content": f"{settings.system_prompt}\n\n{question}"}
    try:
        return str(tokenizer.apply_chat_template([user], **how))
    except Exception as error:  # noqa: BLE001
        raise _no_template(settings, error) from None


def _no_template(settings: PromptRepsChoice, error: Exception) -> ArtifactError:
    return ArtifactError(f"the chat template of {settings.backbone} fails: {first_line(error)}", "choose another model")
