"""The prompt inside a tokenizer's chat template, and the template's frame around a later message of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs.config import EnvironmentSettings
from envs.prompts import Preset
from sleuth.errors import ConfigError
from sleuth.protocols import TextCodec

_SLOTS = ("{question}", "{passages}")
_ASKED, _SAID, _TOLD = "sleuthwasasked", "sleuthhassaid", "sleuthistold"
"""Words that stand for messages while a template is rendered; no template contains them."""


@dataclass(frozen=True, slots=True)
class ChatFrame:
    """A chat template's text around a user message that follows the assistant's.

    ``before`` begins where the assistant's words end (``<|im_end|>\\n<|im_start|>user\\n`` in ChatML); ``after`` ends
    where the assistant begins again, inside a thought if the template opens one.
    """

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Opening:
    """The whole prompt with its slots unfilled; ``frame`` is None if no chat template applies."""

    text: str
    frame: ChatFrame | None = None


def open_chat(wording: str, preset: Preset, settings: EnvironmentSettings, codec: TextCodec) -> Opening:
    """``wording`` as the prompt: inside the chat template if one applies, else after the tokens that the tokenizer
    itself prepends.

    The wording is one user message, as in Search-R1, after ``settings.system`` if there is one; instruction-tuned and
    base models read the same words. Raises ConfigError if the template is required and missing or unusable.
    """
    wanted = settings.chat == "always" or (settings.chat == "auto" and preset.chat)
    text = _render(codec, [wording], settings) if wanted else None
    if text is None:
        if settings.chat == "always":
            raise ConfigError("chat is 'always', but the tokenizer has no chat template", "set chat: auto or never")
        if settings.system is not None:
            raise ConfigError("environment.system needs a chat template, and none applies", "remove it")
        return Opening(codec.bos + wording)
    if any(text.count(slot) != wording.count(slot) for slot in _SLOTS):
        raise ConfigError("the tokenizer's chat template alters the user's message", "set chat: never")
    if settings.system is not None and settings.system.strip() not in text:
        raise ConfigError("the tokenizer's chat template leaves out environment.system", "remove it")
    return Opening(text, _frame(codec, settings))


def _frame(codec: TextCodec, settings: EnvironmentSettings) -> ChatFrame:
    text = _render(codec, [_ASKED, _SAID, _TOLD], settings) or ""
    _, said, rest = text.partition(_SAID)
    before, told, after = rest.partition(_TOLD)
    if not said or not told:
        raise ConfigError("the tokenizer's chat template leaves out earlier messages", "set chat: never")
    return ChatFrame(before, after)


def _render(codec: TextCodec, contents: Sequence[str], settings: EnvironmentSettings) -> str | None:
    """The conversation of user and assistant in turns, up to where the assistant begins; None without a template."""
    messages = [] if settings.system is None else [{"role": "system", "content": settings.system}]
    messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return codec.render_chat(messages, template_variables(settings))


def template_variables(settings: EnvironmentSettings) -> Mapping[str, Any]:
    """What a chat template sees besides the messages: the pinned date, and ``settings.chat_template_kwargs``.

    Templates ask for the date by ``strftime_now`` (a function of the format) or read ``date_string``.
    """
    day = settings.date
    dated = {} if day == "today" else {"strftime_now": day.strftime, "date_string": day.strftime("%d %b %Y")}
    return {**dated, **settings.chat_template_kwargs}
