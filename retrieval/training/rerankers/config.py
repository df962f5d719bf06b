"""Settings of training a reranker: its model, its loss and its optimizer. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny

from hub.config import LoraSettings
from retrieval.config import AnyRetriever
from retrieval.rerankers.config import MaxTokens
from retrieval.rerankers.templates import TemplateName
from sleuth.kinds import KindSettings
from sleuth.settings import Count, Rate, Settings, Share

NotNegative = Annotated[int, Field(ge=0)]


class LossSettings(KindSettings):
    """What a reranker's scores of a query's passages are compared with. ``loss: listnet`` is ``{kind: listnet}``."""

    NOUN: ClassVar[str] = "reranker loss"
    KINDS: ClassVar[Mapping[str, str]] = {
        "bce": "retrieval.training.rerankers.config:BCESettings",
        "listnet": "retrieval.training.rerankers.config:ListNetSettings",
        "list_mle": "retrieval.training.rerankers.config:ListMLESettings",
        "ranknet": "retrieval.training.rerankers.config:RankNetSettings",
        "lambda": "retrieval.training.rerankers.config:LambdaSettings",
        "contrastive": "retrieval.training.rerankers.config:ContrastiveSettings",
        "kl": "retrieval.training.rerankers.config:KLSettings",
        "mse": "retrieval.training.rerankers.config:MSESettings",
        "margin_mse": "retrieval.training.rerankers.config:MarginMSESettings",
    }
    LOSS: ClassVar[str]
    """Dotted path of what makes the loss of these settings."""

    @classmethod
    def spelled_out(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @property
    def from_teacher(self) -> bool:
        """Whether the target is a teacher's scores, which rows carry."""
        return False


class BCESettings(LossSettings):
    """Each pair by itself, golds weighing as much as negatives (binary cross-entropy)."""

    LOSS: ClassVar[str] = "retrieval.training.rerankers.losses:bce"

    kind: Literal["bce"] = "bce"


class GradedSettings(LossSettings):
    """A loss of a whole list. ``target``: golds before negatives, or the order and scores of a teacher."""

    target: Literal["golds", "teacher"] = "golds"

    @property
    def from_teacher(self) -> bool:
        return self.target == "teacher"


class ListNetSettings(GradedSettings):
    """Cross-entropy of the softmax over a list (Cao et al. 2007)."""

    LOSS: ClassVar[str] = "retrieval.training.rerankers.losses:listnet"

    kind: Literal["listnet"] = "listnet"


class ListMLESettings(GradedSettings):
    """Likelihood of the right order (Xia et al. 2008); equal labels are in random order."""

    LOSS: ClassVar[str] = "retrieval.training.rerankers.losses:list_mle"

    kind: Literal["list_mle"] = "list_mle"


class RankNetSettings(GradedSettings):
    """Every pair of passages with unequal labels (Burges et al. 2005)."""

    LOSS: ClassVar[str] = "retrieval.training.rerankers.losses:ranknet"

    kind: Literal["ranknet"] = "ranknet"


class LambdaSettings(LossSettings):
    """RankNet's pairs weighted by what they cost in nDCG (LambdaLoss, Wang et al. 2018)."""

    LOSS: ClassVar[str] = "retrieval.training.rerankers.losses:lambda_loss"

    kind: Literal["lambda"] = "lambda"
    weighting: Literal["ndcg1", "ndcg2", "ndcg2++", "lambdarank"] = "ndcg2++"
    top: Count | None = None
    """The k of nDCG@k; None: the whole list."""


class ContrastiveSettings(LossSettings):
    """One gold against hard negatives and golds of other queries of the step, in one softmax (InfoNCE)."""

    LOSS: ClassVar[str] = "retrieval.training.rerankers.losses:contrastive"

    kind: Literal["contrastive"] = "contrastive"
    temperature: Rate = 1.0
    in_batch: NotNegative = 4
    """Golds of other queries for each; every one is another pair to read."""


class KLSettings(LossSettings):
    """Divergence from a teacher's softmax over a list."""

    LOSS: ClassVar[str] = "retrieval.training.rerankers.losses:kl"

    kind: Literal["kl"] = "kl"
    temperature: Rate = 1.0

    @property
    def from_teacher(self) -> bool:
        return True


class MSESettings(LossSettings):
    """Squared distance from a teacher's scores."""

    LOSS: ClassVar[str] = "retrieval.training.rerankers.losses:mse"

    kind: Literal["mse"] = "mse"

    @property
    def from_teacher(self) -> bool:
        return True


class MarginMSESettings(LossSettings):
    """Squared distance from a teacher's margins between gold and negative (Hofstätter et al. 2020)."""

    LOSS: ClassVar[str] = "retrieval.training.rerankers.losses:margin_mse"

    kind: Literal["margin_mse"] = "margin_mse"

    @property
    def from_teacher(self) -> bool:
        return True


class HeadSettings(KindSettings):
    """How a score is read off the backbone. ``head: label`` is ``{kind: label}``."""

    NOUN: ClassVar[str] = "reranker head"
    KINDS: ClassVar[Mapping[str, str]] = {
        "label": "retrieval.training.rerankers.config:LabelSettings",
        "yes_no": "retrieval.training.rerankers.config:YesNoSettings",
    }

    @classmethod
    def spelled_out(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


class LabelSettings(HeadSettings):
    """A classification head with one label, as of BERT."""

    kind: Literal["label"] = "label"


class YesNoSettings(HeadSettings):
    """The logit of yes minus that of no, after a language model read query and passage (Zhang et al. 2025)."""

    kind: Literal["yes_no"] = "yes_no"
    template: TemplateName | None = None
    """None: the one saved with the backbone, or qwen3."""
    instruction: str | None = None
    """What counts as relevant; it is saved with the model. None: what the backbone has, or the template's own."""


class RerankerSettings(Settings):
    """A model that reads query and passage together and gives one score, trained on the rows' golds and negatives.

    A step takes ``batch_size`` queries over all ranks, each with its golds and up to ``hard_negatives``.
    """

    backbone: str
    head: SerializeAsAny[HeadSettings] | None = None
    """None: yes_no for a causal language model, label for others."""
    loss: SerializeAsAny[LossSettings] = BCESettings()
    first_stage: AnyRetriever | None = None
    """Whose hits are ranked for the queries of ``evaluation``; None: the candidates that its rows carry."""
    depth: Count = 50
    """Hits of the first stage that are ranked."""
    max_tokens: MaxTokens = 256
    """Tokens of query, passage and template together."""
    hard_negatives: Count = 7
    lora: LoraSettings | None = None
    """A low-rank adapter instead of all weights; it is merged into the saved model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights. With bfloat16, train an adapter: small steps vanish in weights of that precision."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: forward passes under autocast."""
    steps: Count | None = None
    epochs: Rate = 1.0
    batch_size: Count = 16
    micro_batch: Count | None = None
    """Pairs in memory at once, by gradient caching; None: all of a step."""
    eval_batch: Count = 64
    """Pairs read at once for the dev set."""
    learning_rate: Rate = 2e-5
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup_steps: NotNegative = 0
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    betas: tuple[Share, Share] = (0.9, 0.999)
    max_grad_norm: Rate = 1.0
    log_steps: Count = 10
    save_steps: Count = 100
    keep_checkpoints: Count = 2
