"""The context that every stage of a run gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sleuth.artifacts import atomic_write
from sleuth.errors import ArtifactError, ConfigError
from sleuth.layout import RunLayout
from sleuth.protocols import Retriever
from sleuth.runs import RunFolder
from workflows.config import RunSettings
from workflows.wiring import make_retriever, make_tool_box


@dataclass(slots=True)
class StageContext:
    """The settings of a run in progress, its folder, and the retriever once it is open."""

    settings: RunSettings
    folder: RunFolder
    resume: bool
    retriever: Retriever | None = None

    @property
    def out(self) -> Path:
        return self.folder.path

    @property
    def layout(self) -> RunLayout:
        return self.folder.layout

    def open_retriever(self) -> Retriever | None:
        if self.retriever is None:
            self.retriever = make_retriever(self.settings.retriever)
            if self.retriever is not None:
                make_tool_box(self.settings.environment, self.retriever)  # refuses what cannot be opened
                self._check_same_index(self.retriever.fingerprint)
        return self.retriever

    def _check_same_index(self, fingerprint: str) -> None:
        """Refuse to continue a run with a different index."""
        known = self.layout.retriever
        if not known.exists():
            atomic_write(known, fingerprint + "\n")
        elif known.read_text(encoding="utf-8").strip() != fingerprint:
            raise ArtifactError(
                f"{self.out} was started with another index or other retriever settings",
                "restore the retriever, or choose another --out",
            )

    def policy_after(self, stage: str) -> str:
        """The path of the policy produced by the stages up to ``stage``, or of the one that the run starts from."""
        made = self.layout.last_policy(stage)
        if made is not None:
            return str(made)
        if self.settings.policy.model is None:
            raise ConfigError("the run has no policy yet", "run: sleuth train")
        return self.settings.policy.model
