"""GRPO on TRL: sets up TRL's trainer with policy, environment, retriever, rewards and evaluation.

TRL takes the optimizer steps, saves checkpoints and resumes from them. A single step is in ``trainer.py``.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.codec import HFCodec
from agent.config import GrpoSettings, PolicySettings
from agent.learning.callbacks import (
    DevEvaluation,
    GradientGuard,
    Monitors,
    ReferenceKeeper,
    StageTimer,
)
from agent.learning.checkpoints import publish_policy
from agent.learning.credit.turn_scores import TurnScorer
from agent.learning.importance import importance_of
from agent.learning.mixture import mixture, spare_question
from agent.learning.options import load_trained, on_one_device, optimizer_options, runtime_options
from agent.learning.rollouts import Driver, GroupRollouts, RolloutRecord, Scorer
from agent.learning.sharing import shared
from agent.learning.sources import LocalSource, MakeSource, Upcoming, local_source
from agent.learning.stability import trl_options
from agent.policies.adapters import peft_config, refuse_second_adapter
from agent.rollout import RolloutDriver
from agent.vision import ProcessorKeeper, VisionCodec
from hub.callbacks import CompletionMarker, LogToSink
from sleuth.artifacts import atomic_write
from sleuth.checkpoints import checkpoint_at, drop_incomplete, newest_complete
from sleuth.errors import ConfigError
from sleuth.layout import GrpoLayout, GrpoOutcome
from sleuth.protocols import MetricSink
from sleuth.trajectories import to_line
from sleuth.types import Question

log = logging.getLogger("sleuth.train")
MakeDriver = Callable[[Any, HFCodec], RolloutDriver]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Question files and their weights in the mixture."""

    sources: Sequence[Sequence[Question]]
    weights: Sequence[float]

    @property
    def questions(self) -> list[Question]:
        return [question for source in self.sources for question in source]


@dataclass(frozen=True, slots=True)
class GrpoJob:
    """What is trained, on which questions, with which rewards, and where it is saved.

    ``evaluate`` plays dev questions greedily and returns the metrics that ``DevEvaluation`` uses, and more; with
    several training processes all call it alike, and the driver divides the questions among them. ``make_source``
    makes a source of rollouts that are played in other processes.
    """

    settings: GrpoSettings
    policy: PolicySettings
    model_name: str
    data: TrainingData
    scorer: Scorer
    make_driver: MakeDriver
    evaluate: Callable[[Driver], Mapping[str, float]]
    out: Path
    seed: int
    sink: MetricSink
    make_source: MakeSource | None = None

    @property
    def layout(self) -> GrpoLayout:
        return GrpoLayout(self.out)


def train_grpo(job: GrpoJob, *, resume: bool = False) -> GrpoOutcome:
    """Train the policy and publish its best checkpoint at ``job.layout.policy``.

    ``resume`` continues from the newest complete checkpoint and ends with the same parameters as an uninterrupted run.
    Training that had already ended, early or not, is not continued.
    """
    layout = job.layout
    if resume and (ended := GrpoOutcome.read(layout)):
        return ended
    trainer = make_trainer(job)
    drop_incomplete(layout.checkpoints)
    found = newest_complete(layout.checkpoints) if resume else None
    try:
        trainer.train(resume_from_checkpoint=str(found) if found else None)
    finally:
        trainer.source.close()

    state = trainer.state
    if state.best_model_checkpoint is None:
        log.warning("no evaluation could score enough dev questions: the last checkpoint is published")
    outcome = GrpoOutcome(
        int(state.global_step if state.best_model_checkpoint is None else state.best_global_step),
        None if state.best_metric is None else float(state.best_metric),
        int(state.global_step),
    )
    if trainer.accelerator.is_main_process:
        publish_policy(checkpoint_at(layout.checkpoints, outcome.best_step), layout.policy)
        outcome.write(layout)
    trainer.accelerator.wait_for_everyone()
    return outcome


def make_trainer(job: GrpoJob) -> Any:
    """TRL's trainer set up for ``job``, ready for ``train``; the caller closes its ``source``."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset
    from transformers import PrinterCallback

    from agent.learning.answer_logprobs import AnswerReader
    from agent.learning.trainer import MeasuredGRPOTrainer

    settings, data = job.settings, job.data
    sizes = [len(source) for source in data.sources]
    model, codec = load_trained(job.policy, job.model_name, settings.lora)
    if settings.lora and hasattr(model, "peft_config"):
        refuse_second_adapter(job.model_name)
    credit = settings.credit.open()
    environment = job.make_driver(None, codec).environment()
    args = grpo_config(settings, job.policy, job.layout.checkpoints, job.seed, environment.total_tokens)
    scorer: TurnScorer | None = getattr(credit, "scorer", None)
    reads = scorer is not None and scorer.needs_model
    rollouts = GroupRollouts(
        data.questions,
        job.scorer,
        credit,
        group_size=settings.group_size,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=job.seed,
        oversample=settings.oversample,
        spare=spare_question(sizes, data.weights),
        turn_scorer=scorer,
        read=AnswerReader(codec, environment, args.per_device_train_batch_size).of if reads else None,
    )
    order = mixture(sizes, data.weights, settings.rollouts * settings.questions, job.seed)
    make_source = job.make_source or local_source(job.policy, job.model_name, settings.lora, job.make_driver)
    source = make_source(model, codec, rollouts, _upcoming(order, settings))
    # what a transcript showed is remembered by the process that plays it
    if isinstance(codec, VisionCodec) and (source.apart or not isinstance(source, LocalSource)):
        source.close()
        raise ConfigError(
            "a policy that sees is trained on rollouts of the trainer's own process only",
            "set policy.backend: transformers, and play rollouts neither ahead nor on workers",
        )
    trainer = MeasuredGRPOTrainer(
        source=source,
        credit=credit,
        max_unscored=settings.monitors.max_unscored,
        importance=importance_of(settings, differs=source.stale or source.apart),
        keep=_keep_trajectories(job.layout) if settings.save_trajectories else None,
        model=model,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": str(position)} for position in order]),
        processing_class=codec.tokenizer,
        peft_config=peft_config(settings.lora),
    )

    if isinstance(codec, VisionCodec):
        trainer.add_callback(ProcessorKeeper(codec))
        if trainer.ref_model is not None:
            codec.pictures.attach(trainer.ref_model)
    trainer.remove_callback(PrinterCallback)
    for callback in _callbacks(job, trainer):
        trainer.add_callback(callback)
    return trainer


def _callbacks(job: GrpoJob, trainer: Any) -> list[Any]:
    """What happens around a step, in this order."""

    def evaluate_dev() -> Mapping[str, float]:
        with trainer.source.current(trainer) as driver:
            return job.evaluate(shared(driver, trainer.accelerator))

    settings = job.settings
    dev = DevEvaluation(
        trainer,
        evaluate_dev,
        job.sink,
        every=settings.eval_steps,
        patience=settings.early_stop,
        max_unscored=settings.monitors.max_unscored,
    )
    return [
        StageTimer(trainer),
        GradientGuard("grpo"),
        dev,
        Monitors(settings.monitors, job.policy.dtype),
        LogToSink(job.sink),
        ReferenceKeeper(trainer),
        CompletionMarker(),
    ]


def grpo_config(settings: GrpoSettings, policy: PolicySettings, work: Path, seed: int, total_tokens: int) -> Any:
    """TRL's GRPOConfig of these settings.

    ``total_tokens`` is the actual completion budget, by which dr_grpo divides.
    """
    from trl import GRPOConfig

    rows = settings.questions * settings.group_size
    world = int(os.environ.get("WORLD_SIZE", "1"))
    micro = settings.micro_batch or rows // settings.minibatches // world or 1
    if rows % (micro * world * settings.minibatches):
        raise ConfigError(
            f"{rows} rows per rollout cannot be split among {world} processes in micro-batches of {micro}",
            "change grpo.questions, grpo.group_size or grpo.micro_batch",
        )
    _check_oversample(settings, world)
    args = GRPOConfig(
        output_dir=str(work),
        max_steps=settings.steps,
        per_device_train_batch_size=micro,
        steps_per_generation=rows // (micro * world),
        gradient_accumulation_steps=rows // (micro * world * settings.minibatches),
        num_iterations=settings.iterations,
        num_generations=settings.group_size,
        max_completion_length=total_tokens,
        temperature=settings.temperature,
        beta=settings.beta,
        use_bias_correction_kl=settings.kl_estimator == "bias_corrected",
        loss_type=settings.loss,
        importance_sampling_level=settings.importance,
        epsilon=settings.epsilon,
        epsilon_high=settings.epsilon_high,
        mask_truncated_completions=settings.mask_truncated,
        sync_ref_model=settings.sync_reference > 0,
        ref_model_sync_steps=settings.sync_reference or 512,
        gradient_checkpointing=settings.gradient_checkpointing,
        model_init_kwargs={"dtype": policy.dtype, "attn_implementation": policy.attention},  # for the reference
        trust_remote_code=policy.trust_remote_code,  # for the reference too
        shuffle_dataset=False,
        disable_dropout=True,
        save_steps=settings.save_steps,
        save_total_limit=settings.keep_checkpoints,
        eval_strategy="no",
        report_to=list(settings.report_to),
        remove_unused_columns=False,
        seed=seed,
        **trl_options(settings),
        **(optimizer_options(settings) | {"warmup_steps": settings.warmup_updates}),
        **runtime_options(policy, logging_steps=1),
    )
    return on_one_device(args)


def _check_oversample(settings: GrpoSettings, world: int) -> None:
    """Raises ConfigError if a process has no whole groups, or may replace none of them."""
    groups, rest = divmod(settings.questions, world)
    if settings.oversample > 1 and rest:
        raise ConfigError(
            f"grpo.oversample needs whole groups in each of {world} processes",
            f"make grpo.questions a multiple of {world}",
        )
    if settings.oversample > 1 and int(groups * settings.oversample) == groups:
        raise ConfigError(
            f"grpo.oversample {settings.oversample:g} replaces no group where a process plays {groups}",
            f"set it to {math.ceil(100 + 100 / groups) / 100:g} or more, or to 1",
        )


def _upcoming(order: Sequence[int], settings: GrpoSettings) -> Upcoming:
    """The rows TRL passes to a process: its part of each rollout's questions, each ``group_size`` times."""

    def prompts(trainer: Any, rows: int, ahead: int) -> list[str] | None:
        start = (int(trainer.state.global_step) // settings.updates_per_rollout + ahead) * settings.questions
        first = int(trainer.accelerator.process_index) * rows
        asked = order[start : start + settings.questions]
        repeated = [str(position) for position in asked for _ in range(settings.group_size)]
        return repeated[first : first + rows] or None

    return prompts


def _keep_trajectories(layout: GrpoLayout) -> Callable[[RolloutRecord], None]:
    """Write each rollout to a file named after its step, so that a resumed run replaces the rollouts it repeats."""
    rank = os.environ.get("RANK", "0")

    def keep(record: RolloutRecord) -> None:
        text = "".join(to_line(scored) for scored in record.scored)
        atomic_write(layout.rollout(record.step, rank), text)

    return keep
