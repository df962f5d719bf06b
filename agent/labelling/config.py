"""Who says which found passages were worth finding. Imports nothing heavy.

labels: {kind: outcomes, shared_credit: 0.5}
labels: {kind: judge, base_url: "http://127.0.0.1:8000/v1", model: NAME}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, SerializeAsAny

from sleuth.judge import JudgeSettings
from sleuth.kinds import KindSettings
from sleuth.plugins import load_object
from sleuth.settings import Count, Share

if TYPE_CHECKING:
    from agent.labelling.searches import Labeller


class LabelSettings(KindSettings):
    """What makes training rows of rollouts. A rollout is right if the F1 of its answer reaches ``right_from``."""

    NOUN: ClassVar[str] = "labels"
    KINDS: ClassVar[Mapping[str, str]] = {
        "outcomes": "agent.labelling.config:OutcomeSettings",
        "golds": "agent.labelling.config:GoldSettings",
        "judge": "agent.labelling.config:JudgedSettings",
        "random": "agent.labelling.config:RandomSettings",
    }
    LABELLER: ClassVar[str]
    """Dotted path of what makes the labeller of this kind from its settings."""
    READS_GOLDS: ClassVar[bool] = False
    """Whether gold titles or ids of training questions are read; where not, they are taken away before anything."""
    KEEPS: ClassVar[bool] = False
    """Whether the labeller is made with a file too, in which it keeps what it was told."""

    right_from: Share = 1.0
    negatives: Count = 8
    """Hard negatives of a query, at most: those that were found most often."""

    @classmethod
    def spelled_out(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value

    def open(self, kept: Path | None = None) -> Labeller:
        """What labels the searches of a group; what a server has said of them is kept in the file ``kept``."""
        made: Labeller = load_object(self.LABELLER)(*((self, kept) if self.KEEPS else (self,)))
        return made


AnyLabels = SerializeAsAny[LabelSettings]


class WorthSettings(LabelSettings):
    """How much of an outcome a passage is credited with."""

    shared_credit: Share = 0.5
    """Weight of a passage that led to the query of a later search which found the answer; 0: no credit is shared."""
    min_worth: Share = 0.0
    """Positives worth less are left out."""


class OutcomeSettings(WorthSettings):
    """From outcomes alone: the answer stands in the passage and the rollout was right, weighed over the group."""

    LABELLER: ClassVar[str] = "agent.labelling.outcomes:Outcomes"

    kind: Literal["outcomes"] = "outcomes"


class GoldSettings(LabelSettings):
    """From the questions' gold passages, by id or title: for questions that have judgements."""

    READS_GOLDS: ClassVar[bool] = True

    LABELLER: ClassVar[str] = "agent.labelling.golds:ByGolds"

    kind: Literal["golds"] = "golds"


class JudgedSettings(JudgeSettings, LabelSettings):
    """A language model reads question, query and passage, and says whether the passage helps."""

    LABELLER: ClassVar[str] = "agent.labelling.judged:Judged"
    KEEPS: ClassVar[bool] = True

    kind: Literal["judge"] = "judge"
    depth: Annotated[int, Field(ge=1)] = 3
    """Hits of a query that are judged, the best ones; the others are left out."""


class RandomSettings(WorthSettings):
    """A control: as many rows as outcomes give, for the same queries, with positives drawn at random among the hits."""

    LABELLER: ClassVar[str] = "agent.labelling.outcomes:at_random"

    kind: Literal["random"] = "random"
