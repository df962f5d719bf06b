"""Where things lie on the machine with the GPU. Only the standard library is used, since nothing is installed yet."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.budget import Stage
from sleuth.errors import ArtifactError


class Work:
    """The work folder on the machine with the GPU, and the paths in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.load = self.folder / "load.json"
        self.store = self.folder / "pieces"
        self.carried = self.folder / "carried"
        self.site = self.folder / "site-packages"  # dill, and so datasets, tells what is installed by this name
        self.stages = self.folder / "stages"
        self.run = self.folder / "run"
        self.ledger = self.folder / "ledger.json"

    def figures(self, stage: Stage) -> Path:
        """What a stage found; it is done once this exists."""
        return self.stages / f"{stage.name}.json"

    def log(self, stage: Stage) -> Path:
        return self.stages / f"{stage.name}.log"

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Raises ArtifactError while another process works here."""
        self.stages.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ArtifactError(f"another process works in {self.folder}", "wait for it to end") from None
            yield
