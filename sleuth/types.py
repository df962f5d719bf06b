"""The data types that flow through Sleuth, all immutable.

A question becomes a trajectory of policy and environment tokens, scored by typed actions and hits, never by raw text.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

FinishReason = Literal["stop", "eos", "length"]
Source = Literal["prompt", "policy", "environment"]
StopReason = Literal[
    "answer",
    "turn_budget",
    "token_budget",
    "prompt_too_long",
    "retriever_failed",
    "environment_failed",
    "worker_lost",
]
_FAILED: frozenset[StopReason] = frozenset({"retriever_failed", "environment_failed", "worker_lost"})
"""Ends that infrastructure or a fault in a program caused, not the policy."""


@dataclass(frozen=True, slots=True)
class SolvedStep:
    """A sub-question with its answer; ``#1`` in it stands for the answer of the first step, and so on."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its accepted answers.

    ``kind`` names its type (``bridge``, ``two_hop``, ...), ``pack`` the data set it is from, where a file has several.
    ``file``: the question file or dataset it was read from, as the user named it; ids are unique within one. Empty if
    unknown, as in older trajectories. ``gold_ids``: the passages that the answer follows from, by id; empty if only
    their titles are known, or nothing. ``alternatives``: any one of its gold passages or titles will do.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    supporting_titles: tuple[str, ...] = ()
    kind: str = ""
    file: str = field(default="", compare=False)
    pack: str = ""
    gold_ids: tuple[str, ...] = ()
    alternatives: bool = False
    steps: tuple[SolvedStep, ...] = ()


@dataclass(frozen=True, slots=True)
class FilePart:
    """``size`` bytes of ``file``, from ``start`` on."""

    file: Path
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Image:
    """A picture. Its ``name`` is a path relative to the corpus; pictures with equal name and SHA-256 are equal.

    ``content``: the encoded bytes or where they are; None if only the name is known, as in trajectory files.
    """

    name: str
    sha256: str
    content: bytes | FilePart | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Passage:
    """A unit of retrieval: text, a picture, or both."""

    id: str
    title: str
    text: str
    image: Image | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage with its score; ``rank`` counts from 1."""

    passage: Passage
    score: float
    rank: int


@dataclass(frozen=True, slots=True, init=False)
class Search:
    """One or several queries, each of which counts as a search."""

    queries: tuple[str, ...]

    def __init__(self, *queries: str) -> None:
        object.__setattr__(self, "queries", queries)

    @property
    def query(self) -> str:
        """The query, for whoever expects one; several are joined by semicolons."""
        return "; ".join(self.queries)


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool other than the search engine; ``arguments`` are JSON values."""

    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    text: str


@dataclass(frozen=True, slots=True)
class Invalid:
    """A turn that did nothing; ``reason`` says why in human-readable form, without words of the policy."""

    reason: str


Action = Search | Call | Answer | Invalid


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. ``temperature`` 0 is greedy; log-probs are those of the distribution that was sampled from.

    ``top_p`` below 1 samples from the nucleus only, whose log-probs are renormalised. ``full_logprobs`` reports instead
    those of the whole distribution, after temperature, which are the ones that a trainer computes.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    full_logprobs: bool = False

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """One generation to make after ``prefix``, which may be cached under ``episode``.

    ``thinking``: a thought is open where the prefix ends. ``schema``: JSON schema of the text, for a backend that can.
    ``images``: pictures that it shows, and where.
    """

    episode: str
    prefix: Sequence[int]
    max_new_tokens: int
    seed: int = 0
    thinking: bool = False
    schema: str | None = None
    images: Sequence[tuple[int, Image]] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """What the policy sampled. The last token may extend past a stop string; it is kept whole.

    ``logprobs`` are in nats, one per token; empty for a policy that does not report them.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """Token ids, and a trainer's log-prob of each but the first, in nats, at temperature 1."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Observation:
    """Tokens inserted by the environment (or the prompt), with their source text; pictures, and where they begin."""

    token_ids: tuple[int, ...]
    text: str
    images: tuple[tuple[int, Image], ...] = ()


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """What a called tool returned, or in one short line why it failed; outside text either way."""

    text: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """The environment ends the episode."""

    reason: StopReason


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens from one source. Only policy segments carry log-probs."""

    source: Source
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """One policy turn: the generation, its action, and the hits and observation that came back.

    ``thinking``: a thought was open where the turn began, as after a prompt that ends in ``<think>``.
    ``hits`` are those of all queries, one after another; ``hits_per_query`` says how many each of several has found.
    ``failure``: why the tool that it called failed; empty if it did not.
    """

    generation: Generation
    text: str
    action: Action
    hits: tuple[Hit, ...] = ()
    observation: str = ""
    thinking: bool = False
    hits_per_query: tuple[int, ...] = ()
    failure: str = ""

    @property
    def found(self) -> list[tuple[str, tuple[Hit, ...]]]:
        """Every query of this turn with its own hits; empty if it did not search."""
        if not isinstance(self.action, Search):
            return []
        counts = self.hits_per_query or (len(self.hits),)
        ends = itertools.accumulate(counts)
        return [
            (query, self.hits[end - count : end])
            for query, count, end in zip(self.action.queries, counts, ends, strict=False)
        ]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a trajectory could not be scored.

    ``by`` names what failed (``the environment``, ``the reward f1``), ``error`` the class of the exception and the
    first line of its message, ``trace`` is the whole traceback, if there is one.
    """

    by: str
    error: str
    trace: str = ""

    def __str__(self) -> str:
        return f"{self.by} failed: {self.error}"


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A whole episode. The first segment is the prompt; ``timings`` are in seconds, by stage.

    ``given``: hits of a search that the environment made before the first turn, shown in the prompt.
    ``failure``: what failed while it was played or scored; None if nothing did, and in older trajectories.
    """

    question: Question
    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...]
    stop: StopReason
    timings: Mapping[str, float] = field(default_factory=dict)
    given: tuple[Hit, ...] = ()
    failure: Failure | None = None

    @property
    def token_ids(self) -> list[int]:
        return [token for segment in self.segments for token in segment.token_ids]

    @property
    def policy_mask(self) -> list[int]:
        """1 where the policy sampled the token, 0 elsewhere; as long as ``token_ids``."""
        return [int(s.source == "policy") for s in self.segments for _ in s.token_ids]

    @property
    def turn_lengths(self) -> list[int]:
        """How many tokens the policy sampled in each of its turns."""
        return [len(segment.token_ids) for segment in self.segments if segment.source == "policy"]

    @property
    def answer(self) -> str | None:
        """The text of the final answer, or None if the episode ended without one."""
        last = self.turns[-1].action if self.turns else None
        return last.text if isinstance(last, Answer) else None

    @property
    def searches(self) -> list[Turn]:
        """The turns whose search was executed; each may have several queries."""
        return [turn for turn in self.turns if isinstance(turn.action, Search)]

    @property
    def queries(self) -> list[str]:
        """Every query that was executed: the number of searches."""
        return [query for turn in self.turns if isinstance(turn.action, Search) for query in turn.action.queries]

    @property
    def calls(self) -> list[Turn]:
        """The turns that called a tool other than the search engine."""
        return [turn for turn in self.turns if isinstance(turn.action, Call)]

    @property
    def hits(self) -> list[Hit]:
        """Everything retrieved in this episode, including hits given before the first turn."""
        return [*self.given, *(hit for turn in self.turns for hit in turn.hits)]

    @property
    def scorable(self) -> bool:
        """False when infrastructure, not the policy, ended the episode, or a reward failed on it."""
        return self.failure is None and self.stop not in _FAILED


@dataclass(frozen=True, slots=True)
class Origin:
    """Where in training a trajectory was sampled.

    ``step``: number of optimizer steps before it was sampled. ``group``: index, within that rollout batch, of the
    group of trajectories for one question. ``advantage``: the weight of its tokens in the loss; None if unknown.
    ``advantages``: where they differ, one for each turn, or one for each sampled token if they differ within a turn;
    ``advantage`` is then the mean over tokens.
    """

    step: int
    group: int
    advantage: float | None = None
    advantages: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class ScoredTrajectory:
    """``reward`` None means *could not be scored*, which is not zero: it is never trained on.

    ``turn_scores``: what each turn earned by itself, None for a turn that is not judged; None as a whole if nobody
    judged turns, or if nothing is known of the question by which to judge them.
    """

    trajectory: Trajectory
    reward: float | None
    parts: Mapping[str, float | None] = field(default_factory=dict)
    origin: Origin | None = None
    turn_scores: tuple[float | None, ...] | None = None


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One search of a demonstration: the thought before it, the query, and the value it should find."""

    think: str
    query: str
    found: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """A demonstration to be replayed with the real environment and retriever."""

    question: Question
    steps: tuple[PlanStep, ...]
    think: str
    answer: str
