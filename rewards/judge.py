"""The judge as a reward: a language model says whether the answer means the same as an accepted one."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from rewards.config import RewardSettings
from sleuth.artifacts import fingerprint_of
from sleuth.errors import ConfigError, DataError, ScoringError
from sleuth.judge import PROMPT, Claim, Judge, JudgeSettings
from sleuth.settings import Count
from sleuth.trajectories import open_for_append, read_jsonl
from sleuth.types import Question, Trajectory

_START = b'{"judge": "'


class JudgeRewardSettings(RewardSettings, JudgeSettings):
    """A server with OpenAI's chat completions, asked whether the answer is right.

    ``base_url`` (or ``url``), ``model`` and the rest are those of ``evaluation.judge``. Verdicts are kept in memory
    and, with ``cache``, in that file of JSON lines, so that a resumed run does not ask again. An answer of more than
    ``max_words`` words is wrong without asking.
    """

    FREE: ClassVar[frozenset[str]] = frozenset(JudgeSettings.model_fields) - {"model", "max_tokens"} | {"cache"}

    kind: Literal["judge"] = "judge"
    cache: Path | None = None
    max_words: Count | None = None

    def open(self) -> JudgeReward:
        if self.cache is not None and self.cache.is_dir():
            raise ConfigError(f"the judge's cache {self.cache} is a folder", "name a file")
        server = JudgeSettings(**{name: getattr(self, name) for name in JudgeSettings.model_fields})
        return JudgeReward(server, Verdicts(self.cache, self.model), self.max_words)


@dataclass(frozen=True)
class JudgeReward:
    """1 if the judge finds the answer right, 0 if wrong, if there is none or it is empty; None without accepted ones.

    A judge that fails, or gives no verdict, leaves the trajectory unscored.
    """

    server: JudgeSettings
    verdicts: Verdicts
    max_words: int | None = None
    name: str = "judge"

    def score(self, question: Question, trajectory: Trajectory) -> float | None:
        del question
        (value,) = self.score_all([trajectory])
        if isinstance(value, ScoringError):
            raise value
        return value

    def score_all(self, trajectories: Sequence[Trajectory]) -> list[float | ScoringError | None]:
        """All that have no verdict yet are asked about at once, each only once."""
        claims = [(t.question.text, tuple(t.question.answers), (t.answer or "").strip()) for t in trajectories]
        known = self.verdicts.of([claim for claim in claims if self._in_doubt(claim)])
        unknown = [claim for claim, verdict in known.items() if verdict is None]
        failures: dict[Claim, ScoringError] = {}
        if unknown:
            with contextlib.closing(Judge(self.server)) as judge:
                for claim, verdict in zip(unknown, judge.attempts(unknown), strict=True):
                    if isinstance(verdict, ScoringError):
                        failures[claim] = verdict
                    else:
                        known[claim] = verdict
                        self.verdicts.keep(claim, verdict)
        return [
            None if not claim[1] else failures[claim] if claim in failures else float(known.get(claim) or False)
            for claim in claims
        ]

    def _in_doubt(self, claim: Claim) -> bool:
        _, accepted, answer = claim
        words = len((answer or "").split())
        return bool(accepted) and words > 0 and (self.max_words is None or words <= self.max_words)


class Verdicts:
    """What the judge ``model`` has said: in memory, and in ``file`` if there is one. May be used by many threads.

    A verdict holds for this model, this prompt, and this question, accepted answers and answer.
    """

    def __init__(self, file: Path | None, model: str) -> None:
        self._file = file
        self._judge = fingerprint_of([model, PROMPT])
        self._model = model
        self._known: dict[str, bool] | None = None
        self._lock = threading.Lock()

    def of(self, claims: Sequence[Claim]) -> dict[Claim, bool | None]:
        """The verdict on each, None where there is none yet. Raises DataError for a file that is not of verdicts,
        ConfigError for one that cannot be written.
        """
        with self._lock:
            if self._known is None:
                self._known = self._read()
            return {claim: self._known.get(self._key(claim)) for claim in claims}

    def keep(self, claim: Claim, right: bool) -> None:
        question, accepted, answer = claim
        row = {"judge": self._judge, "model": self._model, "question": question, "accepted": list(accepted)}
        with self._lock:
            assert self._known is not None
            self._known[self._key(claim)] = right
            if self._file is not None:
                with open_for_append(self._file) as file:  # one write a line: ranks may share the file
                    file.write(json.dumps({**row, "answer": answer, "right": right}) + "\n")

    def _read(self) -> dict[str, bool]:
        known: dict[str, bool] = {}
        if self._file is None:
            return known
        try:
            if self._file.exists() and not _may_be_verdicts(self._file):
                raise DataError(f"{self._file}, line 1: not a judge's verdict", "name another file as cache")
            open_for_append(self._file).close()  # drops a last line that a killed run did not finish
        except OSError as error:  # said before a verdict is paid for that could not be kept
            reason = f"cannot write the judge's cache {self._file}: {error.strerror}"
            raise ConfigError(reason, "name another file as cache") from None
        for number, row in read_jsonl(self._file):
            if not _is_verdict(row):
                raise DataError(f"{self._file}, line {number}: not a judge's verdict", "name another file as cache")
            if row["judge"] == self._judge:
                known[self._key((row["question"], row["accepted"], row["answer"]))] = row["right"]
        return known

    def _key(self, claim: Claim) -> str:
        question, accepted, answer = claim
        return fingerprint_of([question, list(accepted), answer])


def _may_be_verdicts(file: Path) -> bool:
    """Whether the file begins as one of verdicts; any other must not lose its last line."""
    with file.open("rb") as content:
        return _START.startswith(content.read(len(_START)))


def _is_verdict(row: dict[str, Any]) -> bool:
    texts = all(isinstance(row.get(name), str) for name in ("judge", "question", "answer"))
    return texts and isinstance(row.get("accepted"), list) and isinstance(row.get("right"), bool)
