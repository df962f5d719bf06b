"""One of several learners (gloo), which leaves what it found: ``learner_script.py POLICY OUT RANK COUNT``."""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COUNT = 5


def learn(folder: Path, out: Path, batch_size: int) -> dict[str, Any]:
    """The figures of every dev evaluation, and the dev questions that this process played.

    A search fails in the first evaluation. So small a learning rate changes no answer: the run stops early.
    """
    from tiny_job import ENVIRONMENT, AlwaysParis, TokenSum, job_of, settings_of

    from agent.evaluate import evaluate
    from agent.learning.grpo import make_trainer
    from agent.rollout import RolloutDriver
    from envs.factory import make_environment
    from sleuth.errors import RetrieverError
    from sleuth.types import Question, Search

    class SearchesItsQuestion:
        """Searches for the question itself in its first turn."""

        def __init__(self, inner: Any) -> None:
            self._inner, self._asked = inner, False

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def reset(self, question: Question) -> Any:
            self._question = question
            return self._inner.reset(question)

        def step(self, text: str) -> Any:
            first, self._asked = not self._asked, True
            self._inner.step(f"<search> {self._question.text} </search>" if first else text)
            return Search(self._question.text) if first else self._inner.step(text)

    class FailsOnLondon(AlwaysParis):
        """The first time."""

        failed = False

        def search(self, queries: Any, k: int) -> Any:
            if not self.failed and any("London" in query for query in queries):
                self.failed = True
                raise RetrieverError("no London")
            return super().search(queries, k)

    dev = [Question(str(i), f"what is {'London' if i == 3 else 'Paris'} ?", ("Paris",)) for i in range(COUNT)]
    played: list[str] = []
    found: list[dict[str, float | None]] = []

    def make_driver(policy: Any, codec: Any) -> RolloutDriver:
        make = make_environment(ENVIRONMENT, codec)
        driver = RolloutDriver(policy, codec, lambda: SearchesItsQuestion(make()), FailsOnLondon(), 1)
        run = driver.run

        def recorded(questions: Any, sampling: Any, seeds: Any = None) -> Any:
            if sampling.greedy:
                played.extend(question.id for question in questions)
            return run(questions, sampling, seeds)

        driver.run = recorded
        return driver

    def figures(driver: Any) -> dict[str, float]:
        report = evaluate(
            driver, dev, metrics={"em": len_of}, score=TokenSum().score_all, batch_size=batch_size, resamples=1
        )
        seen = {"em": report.reward, "policy_tokens": report.policy_tokens, "unscored": float(report.unscored)}
        found.append({**seen, "n": float(report.overall.n)})
        return seen

    def len_of(prediction: str | None, _answers: Any) -> float:
        return float(len(prediction or ""))

    settings = settings_of(steps=3, eval_steps=1, save_steps=3, learning_rate=1e-7, early_stop=1)
    trainer = make_trainer(job_of(folder, out, settings, make_driver=make_driver, evaluate=figures))
    trainer.train()
    return {"figures": found, "played": played, "step": trainer.state.global_step}


if __name__ == "__main__":
    _, policy, out, rank, count = sys.argv
    sys.path.insert(0, str(HERE))
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}  # asked for, though the group is there already
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    meet, patience = f"file://{out}/meet", timedelta(seconds=250)
    distributed.init_process_group("gloo", init_method=meet, rank=int(rank), world_size=int(count), timeout=patience)
    left = learn(Path(policy), Path(out) / "run", batch_size=int(count))
    (Path(out) / f"{rank}.json").write_text(json.dumps(left))
    distributed.barrier()
    distributed.destroy_process_group()
