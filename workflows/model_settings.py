"""Resolves MODEL on a command line to settings.

A run's folder or config means the run's latest policy, and a policy inside a run means that policy, both with the
run's environment and retriever. A folder written by `sleuth export` means its policy in the environment that it was
trained in. Any other name is a policy with default settings.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from envs.config import EnvironmentSettings
from sleuth.errors import ConfigError
from sleuth.layout import RunLayout
from sleuth.settings import apply_override, validate
from workflows.config import RunSettings, load_run_settings
from workflows.exported import exported_settings
from workflows.retrievers import retriever_values

log = logging.getLogger("sleuth.run")


def settings_of(model: str) -> dict[str, Any]:
    """Plain values for ``RunSettings``, in which ``policy.model`` is the policy to run."""
    path = Path(model)
    if path.suffix in (".yaml", ".yml"):
        settings = load_run_settings(path)
        return _with_policy(settings, RunLayout(settings.out).last_policy() or settings.policy.model)
    run = RunLayout(path)
    if run.is_run():
        settings = load_run_settings(run.config)
        return _with_policy(settings, run.last_policy() or settings.policy.model)
    exported = exported_settings(path)
    if exported:
        return exported
    around = (RunLayout(folder) for folder in path.resolve().parents[:3] if path.exists())
    if inside := next((run for run in around if run.is_run()), None):
        return _with_policy(load_run_settings(inside.config), model)
    return {"out": "runs/evaluate", "policy": {"model": model}}


def session_settings(
    model: str,
    overrides: Sequence[str],
    retriever: str | None = None,
    mode: str | None = None,
    preset: str | None = None,
    top_k: int | None = None,
    turns: int | None = None,
) -> RunSettings:
    """The settings of a chat: those of the config or run named by ``model``, overridden by the options."""
    values = _with_options(model, overrides, retriever, mode, {"preset": preset, "top_k": top_k, "turns": turns})
    environment = values["environment"]
    if turns is not None and 0 < turns <= environment.get("searches", 4):
        environment["searches"] = turns - 1
    settings = validate(RunSettings, values, model)
    _check_searchable(settings)
    compare_prompts(model, settings)
    return settings


def evaluation_settings(
    model: str,
    overrides: Sequence[str],
    data: str | None = None,
    retriever: str | Path | None = None,
    mode: str | None = None,
    preset: str | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    samples: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
) -> RunSettings:
    """The settings of an evaluation: those of the config or run named by ``model``, overridden by the options."""
    values = _with_options(model, overrides, retriever, mode, {"preset": preset, "top_k": top_k})
    evaluation = dict(values.get("evaluation") or {})
    if data and not any(override.startswith("evaluation.limit=") for override in overrides):
        evaluation.pop("limit", None)  # the run's limit applies to the run's own file
    given = {"limit": limit, "batch_size": batch_size, "samples": samples, "temperature": temperature}
    values["evaluation"] = evaluation | {name: value for name, value in given.items() if value is not None}
    if data:
        values["data"] = {"gold": (values.get("data") or {}).get("gold", "id"), "dev": data}
        for override in overrides:
            if override.startswith(("data.", "data=")):
                apply_override(values, override)
        values["data"]["dev"] = data
    settings = validate(RunSettings, values, model)
    if not settings.data.dev:
        raise ConfigError("no question file is given", "add --data FILE")
    _check_searchable(settings)
    return settings


def _with_options(
    model: str,
    overrides: Sequence[str],
    retriever: str | Path | None,
    mode: str | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """The values that ``model`` names with ``retriever`` in them, under ``overrides``, then mode and ``options``."""
    values = settings_of(model)
    if retriever is not None:
        values["retriever"] = retriever_values(str(retriever))
    for override in overrides:
        apply_override(values, override)
    environment = dict(values.get("environment") or {})
    if options.get("preset") and not any(override.startswith("environment.prompts") for override in overrides):
        environment.pop("prompts", None)  # the preset is asked for as it is
    if mode and not (mode == "search" and ":" in environment.get("kind", "")):
        environment["kind"] = mode
    values["environment"] = environment | {name: value for name, value in options.items() if value is not None}
    return values


def _check_searchable(settings: RunSettings) -> None:
    if settings.retriever is None and settings.environment.kind in ("search", "rag"):
        raise ConfigError(
            f"mode {settings.environment.kind} needs something to search",
            "add --retriever INDEX (made by: sleuth index), or --mode direct",
        )


def compare_prompts(model: str, settings: RunSettings) -> None:
    """Warn if a policy that a run has trained is asked in other words than there."""
    trained, now = _trained_in(model), settings.environment
    if trained is None or ":" in trained.kind or ":" in now.kind:
        return
    before, after = trained.wording(), now.wording()
    changed = [field.name for field in fields(before) if getattr(before, field.name) != getattr(after, field.name)]
    around = ("protocol", "tools", "system", "chat", "chat_template_kwargs")
    changed += [name for name in around if getattr(trained, name) != getattr(now, name)]
    if changed:
        said = f"preset {trained.preset}, here {now.preset}; {', '.join(changed)} differ"
        log.warning("%s was trained with other prompts than it is given (%s)", model, said)


def _trained_in(model: str) -> EnvironmentSettings | None:
    """The environment in which ``model`` was trained, as far as its run or export says."""
    exported = exported_settings(Path(model))
    if exported:
        return validate(RunSettings, exported, model).environment
    run = RunLayout(Path(settings_of(model)["out"]))
    return load_run_settings(run.config).environment if run.is_run() and run.last_policy() else None


def _with_policy(settings: RunSettings, model: Path | str | None) -> dict[str, Any]:
    if model is None:
        raise ConfigError(f"{settings.out} has no policy yet, and its config names none", "make one with: sleuth train")
    values = settings.model_dump(mode="json", exclude_unset=True)
    values["policy"] = {**values["policy"], "model": str(model), "tiny": None}
    return values
