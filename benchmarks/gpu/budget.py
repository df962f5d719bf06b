"""How long each stage may take, and what it has taken so far, kept on disk so that it adds up over several calls.

Stages run one after the other. Each may go on until the shares of the whole time up to its own are used, so that what
one leaves over the next ones have; no process of a stage lasts longer than ``AT_ONCE``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from sleuth.artifacts import atomic_write
from sleuth.errors import ArtifactError

State = Literal["left", "done", "failed", "stopped"]
MINUTES = 25.0
AT_ONCE = 8 * 60.0
"""Seconds of one process of a stage."""
LEAST = 10.0
"""Seconds below which a stage is not begun: loading libraries takes as long."""


@dataclass(frozen=True, slots=True)
class Stage:
    """``share``: parts of the whole time, in minutes of ``MINUTES``. ``needed``: nothing follows if it fails."""

    name: str
    share: float
    asks: str
    needed: bool = False


SETUP = Stage("setup", 2.0, "are the pieces whole, and do the wheels install", needed=True)
STAGES = (
    Stage("doctor", 1.5, "driver, torch, memory, which packages can be imported, a search", needed=True),
    Stage("precision", 4.0, "bfloat16 between sampler and trainer, adapters, NCCL, an engine's sleep"),
    Stage("speed", 5.0, "seconds of a step by what it does, and peak memory, at 64 to 1,024 rows"),
    Stage("train", 12.5, "the run itself, as far as it comes"),
)


@dataclass(slots=True)
class Spent:
    seconds: float = 0.0
    attempts: int = 0
    state: State = "left"
    why: str = ""


@dataclass(slots=True)
class Ledger:
    """What every stage has taken. ``save`` is called while one runs, so that a killed call is paid for too."""

    path: Path
    spent: dict[str, Spent] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Raises ArtifactError if the file is damaged."""
        if not path.exists():
            return cls(path)
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            return cls(path, {name: Spent(**one) for name, one in held.items()})
        except (ValueError, TypeError, AttributeError):
            raise ArtifactError(f"{path} is damaged", "delete it: the stages that are done stay done") from None

    def of(self, stage: Stage) -> Spent:
        return self.spent.setdefault(stage.name, Spent())

    @property
    def total(self) -> float:
        return sum(one.seconds for one in self.spent.values())

    def save(self) -> None:
        atomic_write(self.path, json.dumps({name: asdict(one) for name, one in self.spent.items()}, indent=1) + "\n")


def left(stages: Sequence[Stage], stage: Stage, ledger: Ledger, minutes: float) -> float:
    """Seconds that ``stage``, one of ``stages``, may take from now on, in one process or several."""
    until = stages.index(stage) + 1
    share = sum(one.share for one in stages[:until]) / sum(one.share for one in stages)
    return 60 * minutes * share - ledger.total
