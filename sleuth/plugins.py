"""Loads third-party implementations by dotted path, so that nobody has to fork."""

from __future__ import annotations

import importlib
from typing import Any

from sleuth.errors import ConfigError


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
