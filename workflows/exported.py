"""An exported policy: merged weights, a model card, and ``sleuth.json``, which says how it must be prompted."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleuth.artifacts import atomic_folder, check_destination, read_manifest, write_manifest
from sleuth.errors import ArtifactError
from sleuth.layout import RunLayout
from workflows.config import RunSettings, load_run_settings
from workflows.logs import quiet_libraries

if TYPE_CHECKING:
    from envs.config import EnvironmentSettings
    from sleuth.protocols import TextCodec

KIND = "policy"
SETTINGS = "sleuth.json"


def export_policy(run: Path, out: Path, overwrite: bool) -> Path:
    """Write the final policy of a finished run to the folder ``out``; returns where the run keeps it."""
    settings, policy = finished_policy(run)
    check_destination(out, overwrite, [KIND], [policy, settings.policy.model or policy])
    quiet_libraries()
    from agent.export import save_merged
    from workflows.model_card import model_card

    chosen = settings.policy.model_copy(update={"model": str(policy), "tiny": None})
    with atomic_folder(out, overwrite=overwrite) as folder:
        codec = save_merged(chosen, str(policy), folder)
        protocol = protocol_of(settings.environment, codec)
        (folder / SETTINGS).write_text(json.dumps(protocol, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(model_card(run, settings, protocol), encoding="utf-8")
        write_manifest(folder, KIND, {"exported_from": str(run), "policy": str(policy.relative_to(run))})
    return policy


def protocol_of(environment: EnvironmentSettings, codec: TextCodec) -> dict[str, Any]:
    """The content of ``sleuth.json``: settings for Sleuth, and the same in explicit form for other programs.

    ``prompt`` is the whole prompt including the chat template, with ``{question}`` (and ``{passages}``) in it;
    ``thinking`` whether it ends inside an open thought, in which no string stops; ``stop`` the strings that end a turn;
    ``frame`` what stands around an observation after a turn that ended its message (null without a chat template);
    ``tools`` the schemas of what may be called; ``blocks`` how passages are formatted and the reply to an invalid turn;
    ``rules`` in which ways the environment acts as Search-R1's code does;
    ``results`` what stands around one result that is a message of its own.
    """
    from envs.dialogue import Dialogue

    content: dict[str, Any] = {"environment": environment.model_dump(mode="json")}
    if ":" in environment.kind:
        return content  # a third-party environment: only its class knows
    dialogue = Dialogue(environment, codec)
    preset, protocol = dialogue.preset, dialogue.protocol
    unused = {"search", "direct", "cot", "rag"}
    if protocol.tool_messages and environment.kind == "search":
        unused |= {"opening", "closing"}
    texts = {name: value for name, value in asdict(preset).items() if isinstance(value, str)}
    rules = {name: value for name, value in asdict(preset).items() if isinstance(value, bool) and name != "chat"}
    prompt = dialogue.begin(getattr(preset, environment.kind))
    return {
        **content,
        "prompt": prompt,
        "thinking": dialogue.thinking,
        "frame": asdict(dialogue.frame) if dialogue.frame else None,
        "tags": list(protocol.tags),
        "stop": list(protocol.stop_strings),
        "tools": [dict(schema) for schema in protocol.schemas],
        "blocks": {name: text for name, text in texts.items() if name not in unused},
        "rules": rules,
        **({"results": list(dialogue.tool_frame(1))} if protocol.tool_messages else {}),
    }


def finished_policy(run: Path) -> tuple[RunSettings, Path]:
    """A run's settings and the folder of its final policy. Raises ArtifactError unless the run is finished."""
    read_manifest(run, "run", "sleuth train CONFIG")
    settings = load_run_settings(RunLayout(run).config)
    stage = "grpo" if settings.grpo else "warmstart" if settings.warmstart else None
    if stage is None:
        raise ArtifactError(f"{run} trains no policy", "export a run whose config has a grpo or warmstart section")
    if not RunLayout(run).stage(stage).exists():
        raise ArtifactError(
            f"{run} is not finished: its stage {stage} is not done", "finish it with: sleuth train CONFIG --resume"
        )
    policy = RunLayout(run).policy_of(stage)
    assert policy is not None
    return settings, policy


def exported_settings(folder: Path) -> dict[str, Any] | None:
    """Run settings under which an exported policy acts as trained; None if ``folder`` is not an export."""
    path = folder / SETTINGS
    if not path.is_file():
        return None
    try:
        environment = json.loads(path.read_text(encoding="utf-8"))["environment"]
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(f"{path} is damaged", "recreate it with: sleuth export RUN --out FOLDER") from None
    return {"out": "runs/evaluate", "policy": {"model": str(folder)}, "environment": environment}
