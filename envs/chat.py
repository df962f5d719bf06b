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


def open_chat(
    wording: str,
    preset: Preset,
    settings: EnvironmentSettings,
    codec: TextCodec,
    tools: Sequence[Mapping[str, Any]] = (),
) -> Opening:
    """``wording`` as the prompt: inside the chat template if one applies, else after the tokens that the tokenizer
    itself prepends.

    The wording is one user message, as in Search-R1, after ``settings.system`` if there is one; instruction-tuned and
    base models read the same words. ``tools`` are schemas that the template shows. Raises ConfigError if the template
    is required and missing or unusable.
    """
    wanted = settings.chat == "always" or (settings.chat == "auto" and preset.chat)
    text = _render(codec, [_user(wording)], settings, tools) if wanted else None
    if text is None:
        if settings.chat == "always":
            raise ConfigError("chat is 'always', but the tokenizer has no chat template", "set chat: auto or never")
        if settings.system is not None:
            raise ConfigError("environment.system needs a chat template, and none applies", "remove it")
        return Opening(codec.bos + wording)
    plain = "set protocol: tags and chat: never" if tools else "set chat: never"
    if any(text.count(slot) != wording.count(slot) for slot in _SLOTS):
        raise ConfigError("the tokenizer's chat template alters the user's message", plain)
    if settings.system is not None and settings.system.strip() not in text:
        raise ConfigError("the tokenizer's chat template leaves out environment.system", "remove it")
    without = (_render(codec, [_user(wording)], settings) or "") if tools else ""
    unseen = next((tool["name"] for tool in tools if text.count(tool["name"]) <= without.count(tool["name"])), None)
    if unseen is not None:
        raise ConfigError(f"the tokenizer's chat template does not show the tool {unseen}", "set protocol: tags")
    return Opening(text, _frame(codec, settings, plain))


def tool_frame(
    codec: TextCodec, settings: EnvironmentSettings, tools: Sequence[Mapping[str, Any]], count: int
) -> tuple[str, ...]:
    """The template's texts before, between and after ``count`` messages of tools that follow the assistant's.

    The first begins where the assistant's words end, the last ends where the assistant begins again. Raises ConfigError
    if the template has no such messages.
    """
    told = [f"{_TOLD}{number}x" for number in range(count)]
    messages = [_user(_ASKED), {"role": "assistant", "content": _SAID}]
    messages += [
        {"role": "tool", "name": "search", "tool_call_id": f"call{n:05}", "content": t} for n, t in enumerate(told)
    ]
    hint = "set environment.protocol: tags"
    try:
        text = _render(codec, messages, settings, tools)
    except ConfigError as error:
        raise ConfigError(error.message, hint) from None
    if text is None:
        raise ConfigError("this protocol needs a tokenizer with a chat template", hint)
    texts, rest = [], text.partition(_SAID)[2]
    for word in told:
        before, found, rest = rest.partition(word)
        if not found:
            raise ConfigError("the tokenizer's chat template has no messages of tools", hint)
        texts.append(before)
    return (*texts, rest)


def written_call(
    codec: TextCodec, settings: EnvironmentSettings, tools: Sequence[Mapping[str, Any]], query: str
) -> str | None:
    """A call of ``search`` as the template writes it in the assistant's message; None if it does not show calls."""
    call = {"type": "function", "id": "call00000", "function": {"name": "search", "arguments": {"query": query}}}
    said: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
    messages = [_user(_ASKED), said, _user(_TOLD)]
    try:
        text = _render(codec, messages, settings, tools) or ""
    except (ConfigError, TypeError):  # some templates take the arguments as text only
        return None
    text = text.partition(_ASKED)[2].partition(_TOLD)[0]
    return text if query in text else None


def _frame(codec: TextCodec, settings: EnvironmentSettings, plain: str) -> ChatFrame:
    messages = [_user(_ASKED), {"role": "assistant", "content": _SAID}, _user(_TOLD)]
    text = _render(codec, messages, settings) or ""
    _, said, rest = text.partition(_SAID)
    before, told, after = rest.partition(_TOLD)
    if not said or not told:
        raise ConfigError("the tokenizer's chat template leaves out earlier messages", plain)
    return ChatFrame(before, after)


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _render(
    codec: TextCodec,
    messages: Sequence[Mapping[str, Any]],
    settings: EnvironmentSettings,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str | None:
    """The conversation up to where the assistant begins; None without a template."""
    system = [] if settings.system is None else [{"role": "system", "content": settings.system}]
    shown = {"tools": [{"type": "function", "function": dict(tool)} for tool in tools]} if tools else {}
    return codec.render_chat([*system, *messages], {**template_variables(settings), **shown})


def template_variables(settings: EnvironmentSettings) -> Mapping[str, Any]:
    """What a chat template sees besides the messages: the pinned date, and ``settings.chat_template_kwargs``.

    Templates ask for the date by ``strftime_now`` (a function of the format) or read ``date_string``.
    """
    day = settings.date
    dated = {} if day == "today" else {"strftime_now": day.strftime, "date_string": day.strftime("%d %b %Y")}
    return {**dated, **settings.chat_template_kwargs}
