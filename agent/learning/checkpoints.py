"""From a checkpoint of TRL to a policy folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sleuth.artifacts import atomic_folder
from sleuth.checkpoints import COMPLETE, is_complete
from sleuth.errors import ArtifactError

REFERENCE = "reference.safetensors"
"""Folder of the reference model in a checkpoint, if it follows the policy."""
_NOT_WEIGHTS = ("optimizer", "scheduler", "rng_state", "trainer_state", "training_args", "scaler", REFERENCE, COMPLETE)


def publish_policy(checkpoint: Path, destination: Path) -> None:
    """The checkpoint's weights and tokenizer as a policy folder, hard-linked if the file system allows."""
    if not is_complete(checkpoint):
        raise ArtifactError(f"{checkpoint} is not a complete checkpoint", "resume the run that wrote it")
    with atomic_folder(destination, overwrite=True) as folder:
        for path in checkpoint.iterdir():
            if path.is_file() and not path.name.startswith(_NOT_WEIGHTS):
                _link_or_copy(path, folder / path.name)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
