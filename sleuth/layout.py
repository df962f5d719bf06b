"""The paths of everything in a run folder, and the records kept there.

    layout = RunLayout(Path("runs/hotpotqa"))
    layout.evaluation("grpo", "search").metrics     # runs/hotpotqa/evaluation/grpo-search/metrics.json
    layout.last_policy()                            # runs/hotpotqa/grpo/policy, or an earlier stage's policy

No other module builds a path inside a run folder. Only ``write_record`` and the records write anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sleuth.artifacts import atomic_write
from sleuth.checkpoints import newest_complete
from sleuth.errors import ArtifactError

STAGES = ("world", "policy", "start", "demonstrate", "warmstart", "gate", "grpo")
"""The stages of a run, in order."""


@dataclass(frozen=True, slots=True)
class EvaluationLayout:
    """One evaluation at ``folder``: of a stage of a run, of dev questions during GRPO, or standalone."""

    folder: Path

    @property
    def trajectories(self) -> Path:
        return self.folder / "trajectories.jsonl"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions.json"

    @property
    def judged(self) -> Path:
        return self.folder / "judged.json"

    def samples(self, count: int) -> list[EvaluationLayout]:
        """The layout of each of ``count`` samples per question; a single sample is in ``folder`` itself."""
        if count == 1:
            return [self]
        return [EvaluationLayout(self.folder / f"sample-{number}") for number in range(1, count + 1)]

    def existing_samples(self) -> list[EvaluationLayout]:
        """The samples that were kept apart."""
        return [EvaluationLayout(folder) for folder in _by_number(self.folder.glob("sample-*"))]


@dataclass(frozen=True, slots=True)
class GridLayout:
    """Several evaluations beside each other at ``folder``, one folder each."""

    folder: Path

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def chart(self) -> Path:
        return self.folder / "comparison.png"

    @property
    def table(self) -> Path:
        """The table of a suite, in Markdown."""
        return self.folder / "suite.md"

    def questions(self, name: str) -> Path:
        """The questions that were drawn for the set ``name`` of a suite."""
        return self.folder / "questions" / f"{name}.jsonl"

    def cell(self, name: str) -> EvaluationLayout:
        return EvaluationLayout(self.folder / name)


@dataclass(frozen=True, slots=True)
class GrpoLayout:
    """The output of GRPO at ``folder``."""

    folder: Path

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def policy(self) -> Path:
        return self.folder / "policy"

    @property
    def outcome(self) -> Path:
        return self.folder / "outcome.json"

    @property
    def counts(self) -> Path:
        """What happened to the questions that a cluster ran: the contents of ``PoolCounts``."""
        return self.folder / "counts.json"

    @property
    def trajectories(self) -> Path:
        return self.folder / "trajectories"

    def rollout(self, step: int, rank: str) -> Path:
        """Trajectories that the process ``rank`` trained on at ``step``."""
        return self.trajectories / f"step-{step:06d}-{rank}.jsonl"

    def dev(self, step: int) -> EvaluationLayout:
        """The evaluation on the dev questions of the policy at ``step``."""
        return EvaluationLayout(self.folder / "dev" / f"step-{step:06d}")

    def dev_evaluations(self) -> list[EvaluationLayout]:
        return [EvaluationLayout(folder) for folder in sorted((self.folder / "dev").glob("step-*"))]


@dataclass(frozen=True, slots=True)
class RunLayout:
    """The run folder ``out``."""

    out: Path

    @property
    def config(self) -> Path:
        return self.out / "config.yaml"

    @property
    def lock(self) -> Path:
        return self.out / ".lock"

    @property
    def stages(self) -> Path:
        return self.out / "stages"

    def stage(self, name: str) -> Path:
        """The record of stage ``name``; it exists once the stage is done."""
        return self.stages / f"{name}.json"

    def done_stages(self) -> list[str]:
        """The names of the finished stages, sorted."""
        return sorted(record.stem for record in self.stages.glob("*.json"))

    @property
    def retriever(self) -> Path:
        """Records the fingerprint of the retriever that the run was started with."""
        return self.out / "retriever"

    @property
    def world(self) -> Path:
        return self.out / "world"

    @property
    def start(self) -> Path:
        return self.out / "start"

    @property
    def demonstrations(self) -> Path:
        return self.out / "demonstrations.jsonl"

    @property
    def warmstart(self) -> Path:
        return self.out / "warmstart"

    @property
    def warmstart_checkpoints(self) -> Path:
        return self.out / "warmstart_checkpoints"

    @property
    def grpo(self) -> GrpoLayout:
        return GrpoLayout(self.out / "grpo")

    @property
    def gate(self) -> EvaluationLayout:
        """What was sampled before GRPO to see whether it can learn, a sample a question and member of its group."""
        return EvaluationLayout(self.out / "gate")

    @property
    def gate_identity(self) -> Path:
        """Records what the samples of the gate were made with."""
        return self.gate.folder / "identity.json"

    @property
    def learners(self) -> Path:
        """Ray Train's storage for learners that run in separate processes."""
        return self.out / "ray_train"

    @property
    def learner_starts(self) -> Path:
        """A line, the first learner's process id, for every time that the learners were started."""
        return self.learners / "lives"

    @property
    def metrics(self) -> Path:
        """GRPO's metrics by step; see ``stage_metrics`` for the earlier stages."""
        return self.out / "metrics.jsonl"

    def stage_metrics(self, name: str) -> Path:
        return self.out / f"{name}.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.out / "tensorboard"

    @property
    def curve(self) -> Path:
        return self.out / "curve.png"

    @property
    def token(self) -> Path:
        """The secret of the run's cluster, next to the folder because a new run may empty the folder."""
        return self.out.parent / f".{self.out.name}.token"

    def evaluation(self, stage: str, mode: str) -> EvaluationLayout:
        return EvaluationLayout(self.out / "evaluation" / f"{stage}-{mode}")

    def evaluations(self) -> list[EvaluationLayout]:
        """The evaluations of all stages, by name."""
        return [EvaluationLayout(folder) for folder in sorted((self.out / "evaluation").glob("*"))]

    def is_run(self) -> bool:
        """Whether this folder holds a run's stages; a standalone evaluation has none."""
        return self.config.is_file() and self.stages.is_dir()

    def policy_of(self, stage: str) -> Path | None:
        """The path of the policy that ``stage`` produces; None if it produces none."""
        return {"policy": self.start, "warmstart": self.warmstart, "grpo": self.grpo.policy}.get(stage)

    def policies(self, until: str = STAGES[-1]) -> Iterator[Path]:
        """The existing policies of the stages up to and including ``until``, latest first."""
        for stage in reversed(STAGES[: STAGES.index(until) + 1]):
            path = self.policy_of(stage)
            if path is not None and path.exists():
                yield path

    def last_policy(self, until: str = STAGES[-1]) -> Path | None:
        """The latest policy produced by the stages up to and including ``until``."""
        return next(self.policies(until), None)

    def newest_checkpoint(self) -> Path | None:
        return newest_complete(self.grpo.checkpoints)


@dataclass(frozen=True, slots=True)
class RoundLayout:
    """One round of mining and training an encoder or reranker, at ``folder``."""

    folder: Path

    @property
    def rows(self) -> Path:
        """Training rows with the negatives that were mined."""
        return self.folder / "rows.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def dev(self) -> Path:
        """Every dev query's figures, a row an evaluation."""
        return self.folder / "dev_queries.jsonl"

    @property
    def curves(self) -> Path:
        return self.folder / "curves.png"

    @property
    def encoder(self) -> Path:
        return self.folder / "encoder"

    @property
    def index(self) -> Path:
        return self.folder / "index"


@dataclass(frozen=True, slots=True)
class RetrieverRunLayout:
    """The run folder ``out`` of an encoder or reranker; ``encoder`` and ``reranker`` are those of the last round."""

    out: Path

    @property
    def world(self) -> Path:
        return self.out / "world"

    @property
    def backbone(self) -> Path:
        """An untrained backbone that the run made itself."""
        return self.out / "backbone"

    @property
    def encoder(self) -> Path:
        return self.out / "encoder"

    @property
    def reranker(self) -> Path:
        return self.out / "reranker"

    @property
    def labels(self) -> Path:
        """What teachers found for queries, a file a teacher."""
        return self.out / "labels"

    def stage(self, number: int) -> RetrieverRunLayout:
        """One of several stages of training, a whole run in itself."""
        return RetrieverRunLayout(self.out / f"stage-{number}")

    def round(self, number: int) -> RoundLayout:
        return RoundLayout(self.out / f"round-{number}")

    def rounds(self) -> list[RoundLayout]:
        return [RoundLayout(folder) for folder in _by_number(self.out.glob("round-*"))]


@dataclass(frozen=True, slots=True)
class GrpoOutcome:
    """The step and dev EM of the published policy (None if no evaluation scored enough), and the last step."""

    best_step: int
    best_em: float | None
    last_step: int

    def write(self, layout: GrpoLayout) -> None:
        """Record that training has ended and that its best policy is at ``layout.policy``."""
        write_record(layout.outcome, asdict(self))

    @classmethod
    def read(cls, layout: GrpoLayout) -> GrpoOutcome | None:
        """None if training has not ended. Raises ArtifactError for a damaged file.

        Unknown keys are ignored: cluster learners used to record the path of the policy as well.
        """
        found = read_record(layout.outcome)
        if found is None:
            return None
        try:
            best = found["best_em"]
            return cls(int(found["best_step"]), None if best is None else float(best), int(found["last_step"]))
        except (KeyError, TypeError, ValueError):
            raise _damaged(layout.outcome) from None


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` to ``path`` as JSON, atomically."""
    atomic_write(path, json.dumps(dict(content), indent=2) + "\n")


def read_record(path: Path) -> dict[str, Any] | None:
    """The mapping written by ``write_record``; None if there is none. Raises ArtifactError for a damaged file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise _damaged(path) from None
    if not isinstance(found, dict):
        raise _damaged(path)
    return found


def _by_number(folders: Iterable[Path]) -> list[Path]:
    """10 comes after 9, whatever the alphabet says."""
    return sorted(folders, key=lambda folder: (len(folder.name), folder.name))


def _damaged(path: Path) -> ArtifactError:
    return ArtifactError(f"{path} is damaged", "delete it and run the same command with --resume to recreate it")
