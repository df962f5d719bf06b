"""Settings of the environment. Imports without torch."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from envs.prompts import PRESETS, Preset
from envs.wording import PromptSettings, laid_over
from sleuth.errors import did_you_mean
from sleuth.settings import Seconds, Settings

TEMPLATE_DATE = datetime.date(2024, 7, 26)
"""The date that chat templates are told by default, Llama 3.1's own: a run reads the same prompt on any day."""
_OURS = frozenset(
    {"conversation", "messages", "tools", "documents", "chat_template", "tokenize"}
    | {"return_dict", "return_tensors", "add_generation_prompt", "continue_final_message"}
)
"""Arguments of a chat template that are not for the user to set."""
KINDS = ("search", "direct", "cot", "rag")
PROTOCOLS = ("tags", "hermes")
TOOLS = ("search", "open")
Positive = Annotated[int, Field(gt=0)]


class ToolSettings(Settings):
    """A tool of the search environment: ``search``, ``open`` or one of your own.

    ``open`` shows the whole document of a passage, ``options: {words: 300}`` a page. ``kind`` may be a dotted path to
    a class, which is called with ``options`` as keyword arguments. A call fails after ``timeout_s``; search has the
    retriever's own limit.
    """

    kind: str
    timeout_s: Seconds = 10.0
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known(self) -> ToolSettings:
        if self.kind not in TOOLS and ":" not in self.kind:
            raise ValueError(f"unknown tool ({did_you_mean(self.kind, TOOLS)})")
        allowed = {"search": (), "open": ("words",)}.get(self.kind, self.options)
        strange = next((name for name in self.options if name not in allowed), None)
        if strange is not None:
            raise ValueError(f"the tool {self.kind} has no option '{strange}'")
        words = self.options.get("words", 1) if self.kind == "open" else 1
        if isinstance(words, bool) or not isinstance(words, int) or words < 1:
            raise ValueError("words must be a whole number above 0")
        return self


class EnvironmentSettings(Settings):
    """The kind of episode and its budgets, in tokens of the policy's tokenizer.

    ``turns`` counts every policy turn, including invalid ones; ``searches`` every query, of which a turn may have
    several; ``calls`` the calls of other ``tools``; ``total_tokens`` covers prompt, turns and observations. ``kind``
    may be a dotted path to a class, which is called with (settings, codec). ``prompts`` are texts of one's own over the
    preset's. A prompt of more than ``prompt_tokens`` ends its episode before the first turn; None: the prompt needs
    only fit into ``total_tokens``.

    ``unseen``: no search finds again what the episode has shown; further passages come in its place, so that searching
    once more with the same words brings something new.

    ``protocol`` is how the policy acts and reads: ``tags`` (``<search> query </search>``), ``hermes``
    (``<tool_call>{"name": "search", ...}</tool_call>`` and the chat template's own tool messages), or a dotted path.

    For the tokenizer's chat template: ``system``, a system message before the prompt; ``chat_template_kwargs``,
    variables of the template (``enable_thinking: false`` for Qwen3); ``date``, what a template that prints today's
    date is told (``today``: the real one, with which a run reads another prompt every day).
    """

    kind: str = "search"
    protocol: str = "tags"
    tools: tuple[ToolSettings, ...] = (ToolSettings(kind="search"),)
    preset: str = "sleuth"
    prompts: PromptSettings | None = None
    chat: Literal["auto", "always", "never"] = "auto"
    system: str | None = None
    chat_template_kwargs: Mapping[str, Any] = {}
    date: datetime.date | Literal["today"] = TEMPLATE_DATE
    top_k: Positive = 3
    unseen: bool = False
    searches: Annotated[int, Field(ge=0)] = 4
    calls: Annotated[int, Field(ge=0)] = 4
    turns: Positive = 6
    turn_tokens: Positive = 500
    observation_tokens: Positive = 500
    total_tokens: Positive = 4096
    prompt_tokens: Positive | None = None

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, kind: str) -> str:
        if kind not in KINDS and ":" not in kind:
            raise ValueError(f"unknown environment ({did_you_mean(kind, KINDS)})")
        return kind

    @field_validator("protocol")
    @classmethod
    def _known_protocol(cls, protocol: str) -> str:
        if protocol not in PROTOCOLS and ":" not in protocol:
            raise ValueError(f"unknown protocol ({did_you_mean(protocol, PROTOCOLS)})")
        return protocol

    @field_validator("tools")
    @classmethod
    def _with_search(cls, tools: tuple[ToolSettings, ...]) -> tuple[ToolSettings, ...]:
        kinds = [tool.kind for tool in tools]
        if "search" not in kinds:
            raise ValueError("tools must include search: the environment without it is kind: direct")
        twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
        if twice is not None:
            raise ValueError(f"the tool {twice} is listed twice")
        return tools

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, preset: str) -> str:
        if preset not in PRESETS:
            raise ValueError(f"unknown preset ({did_you_mean(preset, PRESETS)})")
        return preset

    @field_validator("system")
    @classmethod
    def _fixed_system(cls, system: str | None) -> str | None:
        for slot in ("{question}", "{passages}"):
            if system is not None and slot in system:
                raise ValueError(f"a system message is the same for all questions: it cannot contain {slot}")
        return system

    @field_validator("chat_template_kwargs")
    @classmethod
    def _free_variables(cls, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in variables:
            if name in _OURS:
                raise ValueError(f"{name} is not a variable of the template: it is set here")
        return variables

    @model_validator(mode="after")
    def _system_is_shown(self) -> EnvironmentSettings:
        if self.system is not None and self.chat == "never":
            raise ValueError("system needs a chat template: remove it, or set chat: auto or always")
        return self

    @model_validator(mode="after")
    def _protocol_is_shown(self) -> EnvironmentSettings:
        plain = self.chat == "never" or (
            self.chat == "auto" and self.prompts is not None and self.prompts.chat is False
        )
        if self.protocol == "hermes" and plain:
            raise ValueError("protocol hermes needs the chat template: set chat: always, or protocol: tags")
        return self

    @model_validator(mode="after")
    def _budgets_fit(self) -> EnvironmentSettings:
        for name in ("turn_tokens", "observation_tokens", "prompt_tokens"):
            if (getattr(self, name) or 0) >= self.total_tokens:
                raise ValueError(
                    f"total_tokens ({self.total_tokens}) must be above {name} ({getattr(self, name)}): "
                    "it covers the prompt and all turns"
                )
        if self.kind == "search" and self.turns <= self.searches:
            raise ValueError(
                f"turns ({self.turns}) must be above searches ({self.searches}): the answer needs its own turn"
            )
        return self

    def wording(self) -> Preset:
        """The preset with ``prompts`` laid over it, in the words of the tag protocol."""
        return laid_over(PRESETS[self.preset], self.prompts)
