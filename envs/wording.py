"""Wording of one's own, laid over a preset's: ``environment.prompts``. Imports without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializerFunctionWrapHandler, model_serializer, model_validator

from envs.prompts import Preset
from sleuth.errors import did_you_mean
from sleuth.settings import Settings

_WORD = re.compile(r"\{\{(?P<literal>\w+)\}\}|\{(?P<slot>\w+)\}")
_ONCE: Mapping[str, tuple[str, ...]] = {
    "search": ("question",),
    "direct": ("question",),
    "cot": ("question",),
    "rag": ("question", "passages"),
    "passage": ("text",),
}
_ANY: Mapping[str, tuple[str, ...]] = {
    "passage": ("number", "title"),
    "invalid": ("reason",),
    "answer_only": ("reason",),
}
_NEVER_EMPTY = ("invalid", "searches_used", "answer_only")


def _read(value: Any) -> Any:
    """The content of PATH for ``{file: PATH}``, unchanged; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    if set(value) != {"file"} or not isinstance(value["file"], str):
        raise ValueError("write the text itself, or {file: PATH}")
    path = Path(value["file"])
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None


Text = Annotated[str, BeforeValidator(_read)]


class PromptSettings(Settings):
    """Texts that replace those of the preset, byte for byte; the others stay the preset's.

    Each is the text itself or ``{file: PATH}``, UTF-8, read when the config is loaded; saved configs and exports have
    the text. ``search``, ``direct``, ``cot`` and ``rag`` contain ``{question}`` once, ``rag`` also ``{passages}``;
    ``passage`` ends with ``{text}`` and may contain ``{number}`` and, once, ``{title}``; ``invalid`` and
    ``answer_only`` may contain ``{reason}``. Braces are literal unless they enclose a single word; ``{{word}}`` is the
    literal ``{word}``. ``chat`` false: plain text even if the tokenizer has a chat template.

    These texts are trusted: strings of special tokens in them become special tokens.
    """

    search: Text | None = None
    direct: Text | None = None
    cot: Text | None = None
    rag: Text | None = None
    opening: Text | None = None
    passage: Text | None = None
    separator: Text | None = None
    closing: Text | None = None
    nothing_found: Text | None = None
    invalid: Text | None = None
    searches_used: Text | None = None
    answer_only: Text | None = None
    last_turn: Text | None = None
    chat: bool | None = None

    @model_validator(mode="after")
    def _slots_fit(self) -> PromptSettings:
        for name, text in self.texts().items():
            wrong = _fault(name, text)
            if wrong:
                raise ValueError(f"{name}: {wrong}")
        return self

    @model_serializer(mode="wrap")
    def _given_only(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}

    def texts(self) -> dict[str, str]:
        """The texts that are given, by name, as written."""
        return {name: value for name, value in self if isinstance(value, str)}


def wording(preset: Preset, prompts: PromptSettings | None) -> Preset:
    """The texts of ``preset`` with ``prompts`` laid over them, ready to be filled."""
    if prompts is None:
        return preset
    changes: dict[str, Any] = {name: _WORD.sub(_plain, text) for name, text in prompts.texts().items()}
    if prompts.chat is not None:
        changes["chat"] = prompts.chat
    return replace(preset, **changes)


def _plain(match: re.Match[str]) -> str:
    return f"{{{match['literal']}}}" if match["literal"] else match[0]


def _fault(name: str, text: str) -> str | None:
    """What is wrong with ``text`` as the template ``name``, in one line; None if nothing is."""
    once, anywhere = _ONCE.get(name, ()), _ANY.get(name, ())
    allowed = (*once, *anywhere)
    slots = [match["slot"] for match in _WORD.finditer(text) if match["slot"]]
    for slot in slots:
        if slot not in allowed:
            return f"unknown slot {{{slot}}} ({_instead(slot, allowed)})"
    for literal in (match["literal"] for match in _WORD.finditer(text)):
        if literal in allowed:
            return f"{{{{{literal}}}}}: the name of a slot cannot be written literally"
    for slot in once:
        if slots.count(slot) != 1:
            return f"{{{slot}}} must occur once, not {slots.count(slot)} times"
    if slots.count("title") > 1:
        return f"{{title}} may occur once, not {slots.count('title')} times"
    if name == "passage" and not text.endswith("{text}"):
        return "it must end with {text}"
    return "it is empty" if name in _NEVER_EMPTY and not text else None


def _instead(slot: str, allowed: Sequence[str]) -> str:
    literally = f"literal braces: {{{{{slot}}}}}"
    return f"{did_you_mean(slot, allowed)}; {literally}" if allowed else f"it has none; {literally}"
