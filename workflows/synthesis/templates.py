"""Prompts as YAML: what is said in each step of a recipe, what is drawn at random, what the reply should look like.

    about: where the recipe is from
    choices:                       # one of each is drawn by seed and fills the slot of its name
      length: [a few words, a whole sentence]
    steps:
      query:
        max_tokens: 64
        stop: ["\\n"]
        messages:
          - system: You write search queries.
          - user: "Passage: {passage}"
        form: {type: object, ...}       # JSON schema, only of a reply in JSON

A slot is a word in braces that the recipe fills or that is drawn; any other word in braces is an error. Braces around
anything else stand for themselves.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, model_validator

from agent.writing.asks import Message, Role
from sleuth.errors import ConfigError, did_you_mean
from sleuth.settings import Count, Settings, read_layers, validate

_SLOT = re.compile(r"\{([A-Za-z]\w*)\}")
_PACKAGE = "workflows.synthesis"


class StepTemplate(Settings):
    """One thing that is said: messages with slots, and how long and in which form the reply may be."""

    max_tokens: Count = 256
    stop: list[str] = Field(default_factory=list)
    messages: Annotated[list[dict[str, str]], Field(min_length=1)]
    form: dict[str, Any] | None = None
    """JSON schema of the reply."""

    @model_validator(mode="after")
    def _roles(self) -> Self:
        for message in self.messages:
            if len(message) != 1 or next(iter(message)) not in ("system", "user", "assistant"):
                raise ValueError("a message is one of system, user, assistant and its text")
        if "user" not in self.messages[-1]:
            raise ValueError("the last message must be the user's, which the model replies to")
        return self

    @property
    def slots(self) -> set[str]:
        return {slot for message in self.messages for text in message.values() for slot in _SLOT.findall(text)}

    def fill(self, values: Mapping[str, str]) -> tuple[Message, ...]:
        """The messages with ``values`` in their slots; a slot without a value stands for itself."""
        filled = []
        for message in self.messages:
            ((role, text),) = message.items()
            filled.append(Message(_role(role), _SLOT.sub(lambda slot: values.get(slot[1], slot[0]), text).strip()))
        return tuple(filled)


class Template(Settings):
    """The prompts of a recipe."""

    about: str = ""
    choices: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(default_factory=dict)
    steps: Annotated[dict[str, StepTemplate], Field(min_length=1)]

    @property
    def examples(self) -> frozenset[str]:
        """What the prompts show as replies: whole ones, and every text within JSON. Small models repeat them."""
        said = (
            message["assistant"] for step in self.steps.values() for message in step.messages if "assistant" in message
        )
        return frozenset(text for reply in said for text in _texts(reply))

    def draw(self, rng: Callable[[str], random.Random]) -> dict[str, str]:
        """One of each of the choices; ``rng`` gives each a stream of its own, lest one draw decide another."""
        return {name: rng(name).choice(values) for name, values in self.choices.items()}


def load_template(
    name: str,
    steps: Mapping[str, Collection[str]],
    choices: Mapping[str, list[str]],
    offered: Collection[str] = (),
) -> Template:
    """The template ``name``: one that is shipped, or a YAML file, with ``choices`` in place of its own.

    ``steps``: those that are asked for, with the slots that are filled; all of these must be in the template, but for
    those that end in ``?``. ``offered``: choices of which the recipe makes something itself. Raises ConfigError.
    """
    if name.endswith((".yaml", ".yml")):
        values = read_layers(Path(name))
    else:
        shipped = templates()
        if name not in shipped:
            raise ConfigError(f"no prompt template '{name}'", f"{did_you_mean(name, shipped)} or name a YAML file")
        text = (resources.files(_PACKAGE) / "prompts" / f"{name}.yaml").read_text(encoding="utf-8")
        values = yaml.safe_load(text)
    template = validate(Template, {**values, "choices": {**(values.get("choices") or {}), **choices}}, name)
    for step, slots in steps.items():
        _check_step(name, template, step, slots)
    filled = {slot.rstrip("?") for slots in steps.values() for slot in slots}
    _check_choices(name, template, filled, offered)
    return template


def _texts(reply: str) -> Iterator[str]:
    """``reply``, or the texts in its JSON."""
    try:
        inside = [json.loads(reply)]
    except ValueError:
        inside = [reply.strip()]
    while inside:
        value = inside.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping | list):
            inside.extend(value.values() if isinstance(value, Mapping) else value)


def _check_step(name: str, template: Template, step: str, slots: Collection[str]) -> None:
    if step not in template.steps:
        raise ConfigError(f"the template {name} has no step '{step}'", f"it has {', '.join(template.steps)}")
    known = {*(slot.rstrip("?") for slot in slots), *template.choices}
    there = template.steps[step].slots
    for slot in sorted(there - known):
        hint = f"{did_you_mean(slot, known)}; choices can be added"
        raise ConfigError(f"the template {name}, step {step}, has a slot {{{slot}}} that nothing fills", hint)
    for slot in slots:
        if not slot.endswith("?") and slot not in there:
            message = f"the template {name}, step {step}, does not show {{{slot}}}"
            raise ConfigError(message, "write the slot where it belongs in a message")


def _check_choices(name: str, template: Template, filled: Collection[str], offered: Collection[str]) -> None:
    used = {slot for step in template.steps.values() for slot in step.slots} - {*filled} | {*offered}
    for choice in template.choices:
        if choice in filled and choice not in offered:
            raise ConfigError(f"the template {name} draws '{choice}', which the recipe fills itself", "leave it out")
        if choice not in used:
            raise ConfigError(f"the template {name} draws '{choice}', and no step shows it", did_you_mean(choice, used))


def templates() -> list[str]:
    """The names of the templates that are shipped."""
    folder = resources.files(_PACKAGE) / "prompts"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _role(name: str) -> Role:
    roles: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
    return roles[name]
