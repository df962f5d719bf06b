"""Strict settings: pydantic models, YAML layers (``extends``), ``--set key=value`` and did-you-mean.

``${NAME}`` in a YAML string is replaced from the environment; ``${NAME:-default}`` has a fallback. This happens
last, so a value that a later layer replaces does not need its variable to be set. Texts under ``prompts`` are taken
as they are.
Paths are relative to the working directory, as on a command line.
"""

from __future__ import annotations

import inspect
import math
import os
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from sleuth.errors import ConfigError, did_you_mean

_UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)
"""What the YAML parser raises: ValueError for an invalid date such as 2024-02-30."""
VERBATIM = "prompts"
"""The section whose texts are a user's own to the last byte, dollars and braces included."""
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")

SECRET = "secret"
"""Type of an error about a value that is not to be shown."""
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0)]
Draw = Literal["first", "seeded"]
"""Which rows a limit keeps: the first of the file, or some from all over it, drawn by the run's seed."""
Seconds = Annotated[float, Field(gt=0.0, le=31_536_000.0)]
"""Up to a year: more than clocks and threads can wait for is an error there."""


def _http(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    return url.rstrip("/")


Address = Annotated[str, AfterValidator(_http)]
"""Of a server, without a slash at its end."""
Limit = Annotated[float, Field(gt=0.0, allow_inf_nan=True)]
"""What is cut or refused above it: infinity means nothing is. NaN is refused."""
Threshold = Annotated[float, Field(ge=-math.inf, allow_inf_nan=True)]
"""What is warned of beyond it: infinity is never reached. NaN is refused."""


def _as_size(value: Any, parse: ValidatorFunctionWrapHandler) -> ByteSize | None:
    try:
        size: ByteSize | None = parse(None if isinstance(value, bool) else value)
    except ValueError:
        size = None
    if size is None and value is not None:
        raise ValueError("write a size such as 8GiB, a number of bytes, 0, or null")
    return size


Size = Annotated[Annotated[ByteSize, Field(ge=0)] | None, WrapValidator(_as_size)]
"""Bytes, written as ``8GiB`` or a number; null means no bound."""


class Settings(BaseModel):
    """Base of every settings section: unknown keys, NaN and infinity are refused, and instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


def load_settings(model: type[S], path: str | Path, overrides: Sequence[str] = ()) -> S:
    """Read ``path`` and the files it extends, apply ``key.sub=value`` overrides, validate strictly.

    Raises ConfigError naming the file, the key and what to write instead.
    """
    values = read_layers(Path(path))
    for override in overrides:
        apply_override(values, override)
    return validate(model, values, str(path))


def read_layers(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The YAML mapping of ``path``, laid over the files named by its ``extends`` (relative to it)."""
    here = path.resolve()
    if here in seen:
        raise ConfigError(f"{path} extends itself", "break the cycle of 'extends'")
    values = _read_yaml(path)
    parents = values.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{path}: extends is {parents!r}", "write a file name or a list of file names")
    merged: dict[str, Any] = {}
    for parent in parents:
        merged = merge(merged, read_layers(path.parent / _expand(parent, f"{path}: extends"), (*seen, here)))
    return merge(merged, values)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``: mappings merge key by key, everything else is replaced.

    A mapping with a different ``kind`` replaces the one below it, whose keys would not fit.
    """
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and value.get("kind", old.get("kind")) == old.get("kind")
        ):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def apply_override(values: dict[str, Any], override: str) -> None:
    """Apply one ``a.b.0.c=value``; the value is YAML, so lists and mappings work too.

    Only that value changes: to change a section's ``kind``, set the whole section, ``a={kind: ...}``.
    """
    key, sep, text = override.partition("=")
    if not sep or not key:
        raise ConfigError(f"--set {override!r} is not key=value", "for example --set grpo.steps=40")
    if "" in key.split("."):
        raise ConfigError(f"--set {key}: the key has an empty part", "for example --set grpo.steps=40")
    try:
        value = _unshared(yaml.load(text, _Loader))
    except _UNREADABLE as error:
        raise ConfigError(f"--set {key}: cannot read {text!r} as YAML", "quote it") from error
    node: Any = values
    *parents, last = key.split(".")
    for depth, part in enumerate(parents):
        node = _descend(node, part, key, nearest=".".join(parents[: depth + 1]))
    if isinstance(node, list):
        node[_index(node, last, key)] = value
    else:
        node[last] = value


def validate(model: type[S], values: Mapping[str, Any], where: str) -> S:
    """Fill in environment variables and validate ``values`` as ``model``; the first fault becomes a ConfigError."""
    filled = {key: _expand(value, f"{where}: {key}") for key, value in values.items()}
    try:
        return model.model_validate(filled)
    except ValidationError as error:
        raise ConfigError(*_explain(model, error, filled, where)) from None


def to_yaml(settings: Settings) -> str:
    """The resolved settings as YAML that ``load_settings`` reads back."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = [p.name for p in path.parent.glob("[!.]*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(f"no config file {path}", did_you_mean(path.name, near) if near else "") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    try:
        values = yaml.load(text, _Loader)
    except _UNREADABLE as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error) or "unreadable"
        raise ConfigError(f"{where}: not valid YAML: {problem}", "check indentation and quotes") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a mapping of settings", "write key: value lines")
    return {key: _unshared(value) for key, value in values.items()}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without two of its traps: duplicate keys are refused, and 1e-5 is a number, not a string."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key '{key}'", key_node.start_mark)
            seen.append(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _unshared(value: Any) -> Any:
    """A copy without values shared through YAML anchors: overriding one must not change another."""
    if isinstance(value, dict):
        return {k: _unshared(v) for k, v in value.items()}
    return [_unshared(v) for v in value] if isinstance(value, list) else value


def _expand(value: Any, where: str) -> Any:
    def replace(match: re.Match[str], place: str) -> str:
        name, fallback = match.groups()
        found = os.environ.get(name, fallback)
        if found is None:
            raise ConfigError(f"{place} uses ${{{name}}}, which is not set", f"export {name}=...")
        return found

    return change_strings(value, lambda text, at: _VARIABLE.sub(lambda match: replace(match, at), text), where)


def change_strings(value: Any, change: Callable[[str, str], str], where: str = "") -> Any:
    """``value`` with ``change(text, place)`` for every string in it but the texts of a mapping ``prompts``."""
    if isinstance(value, dict):
        verbatim = re.split(r"[. ]", where)[-1] == VERBATIM
        return {
            k: v if verbatim and isinstance(v, str) else change_strings(v, change, f"{where}.{k}")
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [change_strings(item, change, where) for item in value]
    return change(value, where) if isinstance(value, str) else value


def _descend(node: Any, part: str, key: str, nearest: str) -> Any:
    place: Any = _index(node, part, key) if isinstance(node, list) else part
    if isinstance(node, dict) and node.get(part) is None:
        node[part] = {}
    child = node[place]
    if not isinstance(child, dict | list):
        raise ConfigError(f"--set {key}: {nearest} is the value {child!r}, which has no keys")
    return child


def _index(items: list[Any], part: str, key: str) -> int:
    if not (part.isascii() and part.isdigit()) or int(part) >= len(items):
        raise ConfigError(f"--set {key}: '{part}' is not an index into a list of {len(items)}")
    return int(part)


def _explain(model: type[BaseModel], error: ValidationError, values: Mapping[str, Any], where: str) -> tuple[str, str]:
    found = error.errors(include_url=False)
    # a name that is unknown says more than one that is missing, which may be the same, mistyped
    first = next((fault for fault in found if fault["type"] == "extra_forbidden"), found[0])
    location = [str(part) for part in first["loc"]]
    named = first["type"] in ("missing", "extra_forbidden") or (
        bool(location) and location[-1] in _field_names(model, first["loc"][:-1], values)
    )
    key = ".".join(_written(first["loc"], values, named=named))
    if first["type"] == "extra_forbidden":
        siblings = _field_names(model, first["loc"][:-1], values)
        return f"{where}: unknown setting '{key}'", did_you_mean(location[-1], siblings)
    if first["type"] == "missing":
        return f"{where}: setting '{key}' is missing", "add it, or --set it"
    given = first.get("input")
    plain = first["type"] != SECRET and isinstance(given, str | int | float | bool | None)
    shown = f", got {given!r}" if plain else ""
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {key or 'settings'}: {message}{shown}", "see docs/configuration.md"


def _written(location: Sequence[str | int], values: Any, named: bool) -> list[str]:
    """The parts of pydantic's ``location`` that occur in ``values``; the others name members of a union.

    The last one is kept if it is ``named``, the name of a setting: it may be missing, or written in another way.
    """
    written = []
    for position, part in enumerate(location):
        below = _inside(values, part)
        if below is not values:
            values = below
            written.append(str(part))
        elif named and position == len(location) - 1:
            written.append(str(part))
    return written


def _field_names(model: type[BaseModel], location: Sequence[str | int], values: Any) -> list[str]:
    """Names of the fields at ``location`` below ``model``, looking through unions, lists, mappings and kinds."""
    candidates = [_own_class(model, values)]
    for part in location:
        values = _inside(values, part)
        deeper: list[type[BaseModel]] = []
        for candidate in candidates:
            if part in candidate.model_fields:
                deeper += _models_in(candidate.model_fields[str(part)].annotation)
            elif isinstance(part, int) or part in (candidate.__name__, _kind_of(candidate)):
                deeper.append(candidate)
        candidates = [_own_class(found, values) for found in deeper] or candidates
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _inside(values: Any, part: str | int) -> Any:
    """What lies at ``part`` of ``values``; ``values`` themselves where ``part`` names a member of a union."""
    if isinstance(values, Mapping) and part in values:
        return values[part]
    return values[part] if isinstance(values, list) and isinstance(part, int) and part < len(values) else values


def _own_class(model: type[BaseModel], values: Any) -> type[BaseModel]:
    """The class of the kind that ``values`` are of, where ``model`` comes in kinds (`sleuth.kinds`)."""
    own: type[BaseModel] = getattr(model, "class_for", lambda _: model)(values)
    return own


def _kind_of(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("kind")
    return field.default if field else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if inspect.isclass(annotation) and not typing.get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for part in typing.get_args(annotation) for found in _models_in(part)]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
