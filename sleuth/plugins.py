"""Loads third-party implementations by dotted path, so that nobody has to fork."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from sleuth.errors import ConfigError, SleuthError, first_line


def load_object(path: str) -> Any:
    """The object at ``package.module:Name``. Raises ConfigError when it is not there."""
    module_name, sep, name = path.partition(":")
    if not sep or not all(part.isidentifier() for part in (*module_name.split("."), *name.split("."))):
        raise ConfigError(
            f"'{path}' is not a dotted path", "write my_package.module:Class, with its folder on PYTHONPATH"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"cannot import {module_name}: {error}", "is it installed or on PYTHONPATH?") from error
    if not hasattr(module, name):
        raise ConfigError(f"{module_name} has no '{name}'")
    return getattr(module, name)


def make_object(
    path: str,
    what: str,
    *given: Any,
    options: Mapping[str, Any] | None = None,
    methods: Sequence[str] = (),
    attributes: Sequence[str] = (),
    see: str = "see docs/extend.md",
) -> Any:
    """What the class or function at ``path`` makes of ``given`` and ``options``; ``what`` names it in messages.

    Raises ConfigError, in one line, if it cannot be made, for whatever reason (it may be anybody's code), or lacks one
    of its ``methods`` or ``attributes``.
    """
    make = load_object(path)
    try:
        made = make(*given, **(options or {}))
        missing = [f"method {name}" for name in methods if not callable(getattr(made, name, None))]
        missing += [f"'{name}'" for name in attributes if not hasattr(made, name)]
    except SleuthError:
        raise
    except TypeError as error:
        line = f"{what} {path} does not take these options: {first_line(error)}"
        raise ConfigError(line, "look at its options") from error
    except Exception as error:
        raise ConfigError(f"{what} {path}: {first_line(error)}", "look at its options") from error
    if missing:
        raise ConfigError(f"{what} {path} has no {missing[0]}", see)
    return made
