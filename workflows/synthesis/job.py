"""A run of ``sleuth synthesize`` in its folder: claimed by one process, with a world of its own if it asks for one."""

from __future__ import annotations

from typing import Any

from sleuth.runs import RunFolder
from sleuth.settings import validate
from workflows.logs import quiet_libraries
from workflows.synthesis.config import GROWING, SynthesisSettings
from workflows.synthesis.layout import SynthesisLayout
from workflows.synthesis.run import Progressing, synthesize
from workflows.wiring import limit_threads


def run_synthesis(settings: SynthesisSettings, resume: bool, overwrite: bool, show: Progressing) -> dict[str, Any]:
    """Write, or go on writing; returns the record of the run. Raises ArtifactError for the folder of another."""
    quiet_libraries()
    limit_threads(settings.threads)
    folder, plain = RunFolder(settings.out), settings.model_dump(mode="json")
    with folder.claim(plain, resume=resume, overwrite=overwrite, may_differ=GROWING, reread=_reread):
        layout = SynthesisLayout(folder.path)
        _make_world(settings, folder, layout)
        return synthesize(settings, layout, show)


def _make_world(settings: SynthesisSettings, folder: RunFolder, layout: SynthesisLayout) -> None:
    if settings.world is None or folder.stage_done("world"):
        return
    from envs.toy_world.generate import generate_world
    from envs.toy_world.write import write_world

    made = generate_world(settings.world)
    write_world(made, layout.world, overwrite=True)
    folder.mark_done("world", {"passages": len(made.passages)})


def _reread(saved: dict[str, Any]) -> dict[str, Any]:
    return validate(SynthesisSettings, saved, "config.yaml of the run").model_dump(mode="json")
