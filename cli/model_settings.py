"""What MODEL on a command line stands for.

A run's folder or config stands for the last policy that the run made, a policy inside a run for itself, both in the
environment and with the retriever that the run was made with. A folder that `sleuth export` wrote stands for itself in
the environment that it was trained in, any other name for a policy with default settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cli.config import RunSettings, load_run_settings
from cli.exported import exported_settings
from sleuth.errors import ConfigError


def settings_of(model: str) -> dict[str, Any]:
    """Settings as plain values for ``RunSettings``; in them ``policy.model`` is the policy to play with."""
    path = Path(model)
    if path.suffix in (".yaml", ".yml"):
        settings = load_run_settings(path)
        return _with_policy(settings, _last_policy(settings.out) or settings.policy.model)
    if _is_run(path):
        settings = load_run_settings(path / "config.yaml")
        return _with_policy(settings, _last_policy(path) or settings.policy.model)
    exported = exported_settings(path)
    if exported:
        return exported
    around = [folder for folder in path.resolve().parents[:3] if path.exists() and _is_run(folder)]
    if around:
        return _with_policy(load_run_settings(around[0] / "config.yaml"), model)
    return {"out": "runs/evaluate", "policy": {"model": model}}


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() and (path / "stages").is_dir()


def _last_policy(run: Path) -> str | None:
    """The policy of the last stage that has made one."""
    made = (run / name for name in ("grpo/policy", "warmstart", "start"))
    return next((str(path) for path in made if path.exists()), None)


def _with_policy(settings: RunSettings, model: str | None) -> dict[str, Any]:
    if model is None:
        raise ConfigError(f"{settings.out} has no policy yet, and its config names none", "make it with: sleuth train")
    values = settings.model_dump(mode="json", exclude_unset=True)
    values["policy"] = {**values["policy"], "model": model, "tiny": None}
    return values
