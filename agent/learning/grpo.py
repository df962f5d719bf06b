"""GRPO on TRL: put policy, environment, retriever, rewards and evaluation around TRL's trainer.

TRL owns the optimizer steps, the checkpoints and their resume. It is fed through ``rollout_func``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.codec import HFCodec
from agent.config import GrpoSettings, PolicySettings
from agent.learning.callbacks import (
    CompletionMarker,
    DevEvaluation,
    GradientGuard,
    LogToSink,
    Monitors,
    StageTimer,
)
from agent.learning.checkpoints import publish_policy
from agent.learning.mixture import mixture
from agent.learning.options import optimizer_options, peft_config, runtime_options
from agent.learning.rollouts import GroupRollouts, RolloutRecord, Scorer
from agent.policies.transformers_policy import TransformersPolicy
from agent.rollout import RolloutDriver
from sleuth.artifacts import atomic_write
from sleuth.checkpoints import drop_incomplete, newest_complete
from sleuth.errors import ConfigError
from sleuth.protocols import MetricSink
from sleuth.trajectories import to_line
from sleuth.types import Question

MakeDriver = Callable[[TransformersPolicy, HFCodec], RolloutDriver]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Question files with the weight that each has in the mixture."""

    sources: Sequence[Sequence[Question]]
    weights: Sequence[float]

    @property
    def questions(self) -> list[Question]:
        return [question for source in self.sources for question in source]


@dataclass(frozen=True, slots=True)
class GrpoOutcome:
    """Where the best policy lies, at which step, with which dev EM."""

    policy: Path
    best_step: int
    best_em: float
    last_step: int


def train_grpo(
    settings: GrpoSettings,
    policy: PolicySettings,
    model_name: str,
    data: TrainingData,
    scorer: Scorer,
    make_driver: MakeDriver,
    evaluate: Callable[[RolloutDriver], Mapping[str, float]],
    out: Path,
    *,
    seed: int,
    sink: MetricSink,
    resume: bool = False,
) -> GrpoOutcome:
    """Train the policy at ``model_name`` and publish its best checkpoint at ``out/policy``.

    ``evaluate`` plays dev questions greedily and returns figures, ``em`` among them. ``resume`` goes
    on from the newest whole checkpoint, to the same parameters as a run that was never stopped.
    """
    work = out / "checkpoints"
    trainer = make_trainer(settings, policy, model_name, data, scorer, make_driver, evaluate, out, seed, sink)
    drop_incomplete(work)
    found = newest_complete(work) if resume else None
    trainer.train(resume_from_checkpoint=str(found) if found else None)

    best = work / Path(trainer.state.best_model_checkpoint).name
    if trainer.accelerator.is_main_process:
        publish_policy(best, out / "policy")
    trainer.accelerator.wait_for_everyone()
    return GrpoOutcome(
        out / "policy",
        int(trainer.state.best_global_step),
        float(trainer.state.best_metric),
        int(trainer.state.global_step),
    )


def make_trainer(
    settings: GrpoSettings,
    policy_settings: PolicySettings,
    model_name: str,
    data: TrainingData,
    scorer: Scorer,
    make_driver: MakeDriver,
    evaluate: Callable[[RolloutDriver], Mapping[str, float]],
    out: Path,
    seed: int,
    sink: MetricSink,
) -> Any:
    """TRL's trainer with everything of Sleuth around it, ready for ``train``."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset
    from transformers import PrinterCallback

    from agent.learning.trainer import MeasuredGRPOTrainer
    from agent.policies.loading import load_policy_model

    model, codec = load_policy_model(policy_settings, model_name, trainable=True)
    state: dict[str, Any] = {}
    policy = TransformersPolicy(
        model,
        codec,
        version=lambda: int(state["trainer"].state.global_step) if state else 0,
        max_rows=policy_settings.max_rows,
        keep_cache=policy_settings.keep_cache,
    )
    driver = make_driver(policy, codec)
    rollouts = GroupRollouts(
        driver,
        data.questions,
        scorer,
        group_size=settings.group_size,
        temperature=settings.temperature,
        seed=seed,
        oversample=settings.oversample,
        on_rollout=_keep_trajectories(out / "trajectories") if settings.save_trajectories else None,
    )

    def rollout_func(prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        with _generating(policy, trainer):
            result = rollouts(prompts, trainer)
        trainer.sampled_at_step = rollouts.record.step
        return result

    def evaluate_dev() -> Mapping[str, float]:
        with _generating(policy, state["trainer"]):
            return evaluate(driver)

    timer = StageTimer()
    dev = DevEvaluation(evaluate_dev, sink, every=settings.eval_steps, patience=settings.early_stop)
    args = grpo_config(settings, policy_settings, out / "checkpoints", seed, driver.environment().total_tokens)
    updates = settings.minibatches * settings.iterations
    count = -(-settings.steps // updates) * settings.questions
    order = mixture([len(s) for s in data.sources], data.weights, count, seed)
    trainer = MeasuredGRPOTrainer(
        model=model,
        reward_funcs=rollouts.reward,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": str(position)} for position in order]),
        processing_class=codec.tokenizer,
        rollout_func=rollout_func,
        peft_config=None if hasattr(model, "peft_config") else peft_config(settings.lora),
        callbacks=[
            timer,
            GradientGuard(),
            dev,
            Monitors(settings.monitors),
            LogToSink(sink),
            CompletionMarker(),
        ],
    )
    trainer.on_advantages = rollouts.weigh
    trainer.remove_callback(PrinterCallback)
    state["trainer"] = timer.trainer = dev.trainer = trainer
    return trainer


def grpo_config(settings: GrpoSettings, policy: PolicySettings, work: Path, seed: int, total_tokens: int) -> Any:
    """TRL's GRPOConfig of these settings.

    ``total_tokens`` is the true completion budget, by which dr_grpo divides.
    """
    from trl import GRPOConfig

    rows = settings.questions * settings.group_size
    world = int(os.environ.get("WORLD_SIZE", "1"))
    micro = settings.micro_batch or rows // settings.minibatches // world
    if rows % (micro * world * settings.minibatches):
        raise ConfigError(
            f"{rows} rows a rollout cannot be shared by {world} processes in micro-batches of {micro}",
            "change grpo.questions, grpo.group_size or grpo.micro_batch",
        )
    if settings.oversample > 1 and (rows // world) % settings.group_size:
        raise ConfigError("grpo.oversample needs whole groups in every process", "make grpo.questions a multiple")
    return GRPOConfig(
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
        scale_rewards=settings.scale_rewards,
        mask_truncated_completions=settings.mask_truncated,
        sync_ref_model=settings.sync_reference > 0,
        ref_model_sync_steps=settings.sync_reference or 512,
        gradient_checkpointing=settings.gradient_checkpointing,
        model_init_kwargs={"dtype": policy.dtype, "attn_implementation": policy.attention},  # for the reference
        shuffle_dataset=False,
        disable_dropout=True,
        save_steps=settings.save_steps,
        save_total_limit=settings.keep_checkpoints,
        eval_strategy="no",
        report_to=list(settings.report_to),
        remove_unused_columns=False,
        seed=seed,
        **optimizer_options(settings),
        **runtime_options(policy, logging_steps=1),
    )


def _generating(policy: TransformersPolicy, trainer: Any) -> AbstractContextManager[None]:
    """Let the policy use the trainer's weights, gathered once however many turns follow."""
    from contextlib import contextmanager

    from trl.models import unwrap_model_for_generation

    @contextmanager
    def gathered() -> Any:
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model:
            policy.model = model
            yield

    return gathered()


def _keep_trajectories(folder: Path) -> Callable[[RolloutRecord], None]:
    """Write each rollout whole under its step's name, so that a resumed run replaces what it repeats."""
    rank = os.environ.get("RANK", "0")

    def keep(record: RolloutRecord) -> None:
        text = "".join(to_line(scored) for scored in record.scored)
        atomic_write(folder / f"step-{record.step:06d}-{rank}.jsonl", text)

    return keep
