"""Run folders written by hand, for the report: ordinary ones and one whose every text is an attack."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from sleuth.runs import RunFolder
from sleuth.trajectories import to_line
from sleuth.types import (
    Answer,
    Generation,
    Hit,
    Invalid,
    Origin,
    Passage,
    Question,
    ScoredTrajectory,
    Search,
    Segment,
    Trajectory,
    Turn,
)

ATTACK = (
    "</script><script>window.owned=1;document.title='owned'</script><img src=x onerror='window.owned=2'><!--<script>"
)
CONFIG = {
    "seed": 0,
    "policy": {"model": None, "tiny": {"layers": 2}},
    "grpo": {"steps": 2},
    "environment": {"kind": "search"},
}
SIZE = 4


def played(identity: str, number: int, text: str = "", kind: str = "bridge", noise: int = 0) -> Trajectory:
    """Two searches at most and an answer; ``text`` stands in every place that comes from outside.

    ``noise``: so many random tokens at the end of an observation, which no compression makes small.
    """
    prompt = (5, 6, number % 50)
    random = Random(f"{identity} {number}")
    segments, turns = [Segment("prompt", prompt)], []
    for search in range(number % 3):
        said = f"<think>need it {text}</think> <search>who is {identity} {text}</search>"
        tokens, logprobs = (10, 11 + search), (-0.25, -1.5)
        hits = (
            Hit(Passage(f"p{number}{text}", f"Title {identity}{text}", f"text {text}"), 1.5, 1),
            Hit(Passage("px", "Other", "text"), 0.5, 2),
        )
        environment = (7, 8, 9, *(random.randrange(50_000) for _ in range(noise)))
        shown = f"<information>\npassage of {identity} {text}\n</information>"
        turns.append(Turn(Generation(tokens, logprobs, "stop", 1), said, Search(f"who {text}"), hits, shown))
        segments += [Segment("policy", tokens, logprobs), Segment("environment", environment)]
    last = Invalid(f"no action {text}") if number == 3 else Answer(f"x{text}")
    turns.append(Turn(Generation((12, 13), (-0.1, -0.2), "stop", 1), f"<answer>x{text}</answer>", last))
    segments.append(Segment("policy", (12, 13), (-0.1, -0.2)))
    question = Question(identity, f"Question {identity}? {text}", (f"x{text}",), (f"Title {identity}{text}",), kind)
    stop = "answer" if isinstance(last, Answer) else "turn_budget"
    return Trajectory(question, tuple(segments), tuple(turns), stop, {"generate": 0.01, "retrieve": 0.002})


def rollouts(step: int, groups: int, text: str = "", size: int = SIZE, noise: int = 0) -> list[ScoredTrajectory]:
    rows = []
    for group in range(groups):
        kind = ("bridge", "comparison")[group % 2] + text
        for member in range(size):
            trajectory = played(f"train-{step * groups + group}", member, text, kind, noise)
            reward = None if member == 3 and group == 0 else float(member % 2)
            origin = Origin(step, group, 0.0 if reward is None else 2 * reward - 1)
            rows.append(ScoredTrajectory(trajectory, reward, {f"exact_match{text}": reward}, origin))
    return rows


def by_turn(rows: list[ScoredTrajectory]) -> list[ScoredTrajectory]:
    """The same rollouts with credit by turns: the first search earns 1, others 0, each turn has its own advantage."""
    found = []
    for row in rows:
        turns = range(len(row.trajectory.turns))
        scores = tuple(None if turn == turns[-1] else float(turn == 0) for turn in turns)
        advantages = tuple(0.5 * turn - 0.25 for turn in turns)
        assert row.origin is not None
        origin = replace(row.origin, advantages=advantages if len(turns) > 1 else None)
        found.append(replace(row, origin=origin, turn_scores=scores))
    return found


def write_rows(path: Path, rows: list[ScoredTrajectory]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(map(to_line, rows)))


def make_run(
    folder: Path,
    text: str = "",
    steps: int = 2,
    groups: int = 3,
    config: dict[str, Any] | None = None,
    done: bool = True,
) -> Path:
    """A finished run (or one going on) with rollouts, two dev checkpoints and two evaluations."""
    run = RunFolder(folder)
    with run.claim({"out": str(folder), **CONFIG, **(config or {}), **({"note": text} if text else {})}):
        if done:
            run.mark_done("grpo", {"best_step": steps})
    lines = []
    for step in range(steps):
        write_rows(folder / "grpo" / "trajectories" / f"step-{step:06d}-0.jsonl", rollouts(step, groups, text))
        times = {"time/generate": 1.0, "time/retrieve": 0.5, "time/update": 0.5, "time/step": 2.0}
        lines.append({"step": step + 1, "reward": step / 10, "kl": 0.01, f"figure{text}": 1.0, **times})
    for step, right in ((0, 0.0), (steps, 1.0)):
        rows = [ScoredTrajectory(played(f"dev-{i}", i, text), right if i else 0.0, {}) for i in range(4)]
        write_rows(folder / "grpo" / "dev" / f"step-{step:06d}" / "trajectories.jsonl", rows)
        lines.append({"step": step, "dev/em": right})
    for name in ("warmstart-search", f"grpo-search{'-x' if text else ''}"):
        rows = [ScoredTrajectory(replace(played(f"test-{i}", i, text)), 1.0, {}) for i in range(3)]
        write_rows(folder / "evaluation" / name / "trajectories.jsonl", rows)
        figures = {"em": 0.5, "em_interval": [0.25, 0.75], "f1": 0.5, "n": 3, "searches": 1.0, f"x{text}": 1}
        (folder / "evaluation" / name / "metrics.json").write_text(json.dumps(figures))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def make_suite(folder: Path, text: str = "", answers: dict[str, list[str]] | None = None) -> Path:
    """A finished suite of the sets ``a`` and ``b`` with two systems; ``answers``: theirs to the four questions of each.

    The right answer is ``x``.
    """
    given = answers or {"base, direct": ["x", "no", "no", "no"], f"grpo{text}, search, bm25": ["no", "x", "x", "no"]}
    cells: list[dict[str, Any]] = []
    folders = [f"{name}-{number}" for number in range(len(given)) for name in ("a", "b")]
    with RunFolder(folder).claim({"cells": folders}):
        pass
    for number, (system, said) in enumerate(given.items()):
        policy, mode, retriever = [*system.split(", "), "-"][:3]
        for name in ("a", "b"):
            place = {"data": name, "policy": policy, "mode": mode, "retriever": retriever}
            right = sum(answer == "x" for answer in said) / 4
            figures = {"em": right, "em_interval": [0.0, 1.0], "f1": right, "f1_interval": [0.0, 1.0], "n": 4}
            cells.append({**place, "folder": f"{name}-{number}", **figures})
            rows = [answered(f"{name}{i}", answer, text) for i, answer in enumerate(said)]
            cell = folder / cells[-1]["folder"]
            with RunFolder(cell).claim({"policy": {"model": None}, "seed": 0}):
                write_rows(cell / "trajectories.jsonl", rows)
                (cell / "metrics.json").write_text(json.dumps(figures))
    columns = [
        {"name": name, "title": f"Set {name}{text}", "group": text, "questions": 4, "sha256": f"{name}{text}"}
        for name in ("a", "b")
    ]
    systems = [
        {
            **{key: cell[key] for key in ("policy", "mode", "retriever")},
            "em": {"sets": {"a": cell["em"], "b": cell["em"]}, "mean": cell["em"], "mean_interval": [0.1, 0.9]},
            "f1": {"sets": {}, "mean": cell["f1"], "mean_interval": [0.1, 0.9]},
        }
        for cell in cells[::2]
    ]
    content = {"cells": cells, "comparisons": [], "suite": {"sets": columns, "systems": systems, "changes": []}}
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def answered(identity: str, answer: str, text: str = "") -> ScoredTrajectory:
    """The question ``identity``, which was answered so."""
    trajectory = played(identity, 1, text)
    turns = (
        *trajectory.turns[:-1],
        replace(trajectory.turns[-1], text=f"<answer>{answer}</answer>", action=Answer(answer)),
    )
    question = replace(trajectory.question, answers=("x",))
    return ScoredTrajectory(replace(trajectory, turns=turns, question=question), float(answer == "x"), {})
