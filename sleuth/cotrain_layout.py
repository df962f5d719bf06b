"""The paths of co-training, in the run folder of the agent that begins it.

layout = CotrainLayout(Path("runs/cotrain"))
layout.round(1).rows                # runs/cotrain/round-1/rows.jsonl
layout.round(2).agent.grpo.policy   # the policy after the second round
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sleuth.layout import EvaluationLayout, RetrieverRunLayout, RunLayout


@dataclass(frozen=True, slots=True)
class CotrainRoundLayout:
    """One round at ``folder``; round 0 has evaluations only, of what the first round starts from."""

    folder: Path

    @property
    def rollouts(self) -> EvaluationLayout:
        """Rollouts on training questions, a sample for each member of a group."""
        return EvaluationLayout(self.folder / "rollouts")

    @property
    def rows(self) -> Path:
        return self.folder / "rows.jsonl"

    @property
    def replies(self) -> Path:
        """What a language model has said of hits, where one labels them."""
        return self.folder / "replies.jsonl"

    @property
    def retriever(self) -> RetrieverRunLayout:
        return RetrieverRunLayout(self.folder / "retriever")

    @property
    def index(self) -> Path:
        return self.folder / "index"

    @property
    def agent(self) -> RunLayout:
        return RunLayout(self.folder / "agent")

    @property
    def judged(self) -> Path:
        """The figure of every judged query after the round."""
        return self.folder / "judged.json"

    def evaluation(self, name: str) -> EvaluationLayout:
        """``dev`` or ``test`` after the round; ``swapped``: of the policy before it, with the retriever after it."""
        return EvaluationLayout(self.folder / name)


@dataclass(frozen=True, slots=True)
class CotrainLayout:
    """The run folder ``out``."""

    out: Path

    @property
    def start(self) -> RetrieverRunLayout:
        """The training of the first retriever, where the config describes one."""
        return RetrieverRunLayout(self.out / "retriever-0")

    @property
    def start_index(self) -> Path:
        """Where the index of the first retriever belongs, though a config may put it elsewhere."""
        return self.start.out / "index"

    @property
    def rounds(self) -> Path:
        """What each round gained, for people and the report."""
        return self.out / "rounds.json"

    def round(self, number: int) -> CotrainRoundLayout:
        return CotrainRoundLayout(self.out / f"round-{number}")
