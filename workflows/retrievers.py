"""A retriever given on the command line: its settings, and how it is opened."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hub.threads import use_threads
from retrieval.config import AnyRetriever, RetrieverSettings
from retrieval.service.config import ServiceLimits
from sleuth.errors import ConfigError
from sleuth.protocols import Retriever
from sleuth.settings import Settings, apply_override, read_layers, validate

HELP = "Index folder, URL of a service, YAML file, or settings such as '{kind: hybrid, parts: [a, b]}'."


def retriever_settings(given: str | Path, overrides: Sequence[str] = ()) -> RetrieverSettings:
    """Settings of the retriever that ``given`` names; ``overrides`` are the values of ``--set``.

    A YAML file contains the settings themselves or, like a run's config, a section ``retriever``.
    """
    values = {"retriever": retriever_values(str(given))}
    for override in overrides:
        apply_override(values, override)
    return validate(_Named, values, str(given)).retriever


def open_alone(settings: RetrieverSettings, **how: Any) -> Retriever:
    """The retriever of a command without a policy; its model, if it has one, uses the cores of the machine.

    Progress is shown while an index is made, unless ``how`` says otherwise.
    """
    from retrieval.open import open_retriever
    from retrieval.progress import build_progress

    retriever = open_retriever(settings, **{"progress": build_progress, **how})
    if "torch" in sys.modules:  # BM25 and services do without it
        use_threads(None)
    return retriever


def service_limits(
    settings: RetrieverSettings, given: Mapping[str, Any], overrides: Sequence[str] = ()
) -> ServiceLimits:
    """Limits of a service of this retriever: those ``given`` that are not None, then ``overrides``."""
    limits = {"timeout_s": max(60.0, settings.patience_s)}
    values: dict[str, Any] = {"limits": limits | {name: value for name, value in given.items() if value is not None}}
    for override in overrides:
        apply_override(values, override)
    return validate(_Limited, values, "serve-retriever").limits


class _Named(Settings):
    retriever: AnyRetriever


class _Limited(Settings):
    limits: ServiceLimits


def retriever_values(given: str) -> Any:
    """The retriever that ``given`` names, as plain values for settings."""
    if given.lstrip().startswith("{"):
        values: dict[str, Any] = {}
        try:
            apply_override(values, f"retriever={given}")
        except ConfigError:
            raise ConfigError(
                f"cannot read the retriever {given!r} as YAML", "for example '{kind: bm25, index: FOLDER}'"
            ) from None
        return values["retriever"]
    if given.endswith((".yaml", ".yml")):
        return _from_file(Path(given))
    if given.startswith(("http://", "https://")):
        return {"kind": "remote", "url": given}
    return {"index": given}


def _from_file(path: Path) -> Any:
    values = read_layers(path)
    if "policy" in values or "out" in values:
        from workflows.config import load_run_settings

        chosen = load_run_settings(path).retriever
        if chosen is None:
            raise ConfigError(f"{path} has no retriever", "add a section 'retriever'")
        return chosen.model_dump(mode="json", exclude_unset=True)
    return values.get("retriever", values)
