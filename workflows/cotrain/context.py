"""What every stage of co-training gets: settings, folder, and the policy and retriever as they are after a round."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.config import RetrieverSettings
from retrieval.encoders.index_config import EncodedIndexSettings
from sleuth.cotrain_layout import CotrainLayout
from sleuth.errors import ArtifactError, ConfigError, RetrieverError
from sleuth.failures import causes
from sleuth.layout import EvaluationLayout, RunLayout
from sleuth.protocols import Retriever
from sleuth.runs import RunFolder
from sleuth.types import Question, ScoredTrajectory
from workflows.cotrain.config import CotrainRun, CotrainSettings
from workflows.cotrain.families import learner_of, with_learned
from workflows.play import Opened, Progress, batch_size, played

if TYPE_CHECKING:
    from agent.evaluate import EvaluationReport
    from sleuth.types import Sampling


log = logging.getLogger("sleuth.cotrain")


@dataclass(slots=True)
class Cotraining:
    """Co-training in progress. ``counting`` shows progress under a title."""

    settings: CotrainRun
    folder: RunFolder
    counting: Progress
    opened: Opened = field(default_factory=Opened)

    @property
    def chosen(self) -> CotrainSettings:
        return self.settings.cotrain

    @property
    def layout(self) -> CotrainLayout:
        return CotrainLayout(self.folder.path)

    def info(self, number: int, stage: str) -> dict[str, Any]:
        """What stage ``stage`` of a round recorded; empty if it is not done."""
        return self.folder.stage_info(stage_name(number, stage))

    def policy(self, number: int) -> str:
        """The policy after round ``number``; 0 is the one that the first round begins with."""
        rounds = range(number, 0, -1) if self.chosen.agent == "grpo" else ()
        made = (self.layout.round(one).agent.grpo.policy for one in rounds)
        found = next(
            (policy for policy in made if policy.exists()), RunLayout(self.folder.path).last_policy("warmstart")
        )
        if found is not None:
            return str(found)
        if self.settings.policy.model is None:
            raise ConfigError("co-training has no policy to begin with", "set policy.model, or policy.tiny and world")
        return self.settings.policy.model

    def retriever(self, number: int) -> RetrieverSettings:
        """The retriever after round ``number``: the newest one that was swapped in."""
        assert self.settings.retriever is not None
        for one in range(number, 0, -1):
            if self.info(one, "guard").get("swapped"):
                return self.candidate(one)
        return self.settings.retriever

    def candidate(self, number: int) -> RetrieverSettings:
        """The retriever that round ``number`` has trained, whether it was swapped in or not."""
        learning, layout, before = self.chosen.retriever, self.layout.round(number), self.retriever(number - 1)
        assert learning is not None
        learner = learner_of(before, learning.reranker is not None)
        if learning.reranker is not None:
            return with_learned(before, learner, layout.retriever.reranker, Path())
        still = learning.training.kind == "frozen_passages"
        index = learner.index if still and isinstance(learner, EncodedIndexSettings) else layout.index
        return with_learned(before, learner, layout.retriever.encoder, index)

    def open(self, settings: RetrieverSettings, expected: str | None = None) -> Retriever:
        """The retriever of ``settings``. Raises ArtifactError if it is not the one ``expected``, by fingerprint."""
        retriever = self.opened.retriever(self.settings.model_copy(update={"retriever": settings}))
        assert retriever is not None
        if expected is not None and retriever.fingerprint != expected:
            raise ArtifactError(
                f"{settings.name} is not the index that this run has made: its fingerprint differs",
                "restore it, or choose another --out",
            )
        return retriever

    def open_after(self, number: int) -> Retriever:
        """The retriever after round ``number``, which must be the one that was made then."""
        made = [one for one in range(number, 0, -1) if self.info(one, "guard").get("swapped")]
        expected = self.info(made[0], "index")["fingerprint"] if made else self.info(0, "evaluate").get("fingerprint")
        return self.open(self.retriever(number), expected)

    def play(
        self,
        title: str,
        questions: Sequence[Question],
        policy: str,
        searching: int,
        out: EvaluationLayout,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        scored: bool = True,
    ) -> EvaluationReport:
        """Answer ``questions`` with the retriever after round ``searching``, greedily unless ``sampling`` says how.

        What is in ``out`` already is not played again.
        Raises RetrieverError if the retriever or a worker failed on some questions, or if none could be scored: a
        resume plays those again. Other failures may come back at every attempt, so that a warning has to do.
        """
        from agent.evaluate import GREEDY, evaluate
        from rewards.scorer import make_scorer
        from rewards.text_match import exact_match, f1

        retriever = self.open_after(searching)
        chosen = self.settings.policy.model_copy(update={"model": policy, "tiny": None})
        settings = self.settings.model_copy(update={"policy": chosen, "retriever": self.retriever(searching)})
        out.folder.mkdir(parents=True, exist_ok=True)
        with self.counting(title) as on_progress:
            report = evaluate(
                self.opened.driver(settings, retriever),
                questions,
                metrics={"em": exact_match, "f1": f1},
                score=make_scorer(settings.rewards).score_all if scored else None,
                out=out.folder,
                sampling=sampling or GREEDY,
                batch_size=batch_size(settings),
                seed=seed,
                resamples=settings.evaluation.bootstrap,
                on_progress=on_progress,
            )
        if report.unscored:
            said = f"{report.unscored} of {report.overall.n} questions could not be scored ({causes(report.failures)})"
            passing = report.stops.get("retriever_failed") or report.stops.get("worker_lost")
            if passing or not report.overall.scored:
                raise RetrieverError(said, "fix what failed, then run the same command with --resume to retry these")
            log.warning("%s: %s; no mean and no row includes them", title, said)
        return report


def stage_name(number: int, stage: str) -> str:
    return f"round-{number}-{stage}"


def rollouts_of(run: Cotraining, number: int) -> list[ScoredTrajectory]:
    """The rollouts of a round, sample by sample."""
    samples = run.layout.round(number).rollouts.samples(run.chosen.group_size)
    return [row for sample in samples for row in played(sample)]
