"""The table for people says the figures, their denominators and what could not be scored."""

import io
from dataclasses import replace
from typing import Any

from rich.console import Console

from agent.evaluate import summarise
from cli.tables import print_report
from sleuth.types import (
    Answer,
    Generation,
    Hit,
    Passage,
    Question,
    ScoredTrajectory,
    Search,
    Segment,
    StopReason,
    Trajectory,
    Turn,
)


def played(identity: str, found: str | None, stop: StopReason = "answer") -> ScoredTrajectory:
    hits = () if found is None else (Hit(Passage("p", found, ""), 1.0, 1),)
    first = () if found is None else (Turn(Generation((7,), (-1.0,), "stop"), "", Search("q"), hits),)
    turns = (*first, Turn(Generation((8, 9), (-1.0, -1.0), "stop"), "", Answer("x")))
    segments = (Segment("prompt", (1,) * 10), Segment("policy", (8, 9), (-1.0, -1.0)))
    question = Question(identity, "?", ("x",), ("A", "B"), "bridge [a]")
    return ScoredTrajectory(Trajectory(question, segments, turns, stop, {"generate": 2.0}), 1.0)


def text_of(rows: list[ScoredTrajectory]) -> str:
    stream = io.StringIO()
    metrics = {"em": lambda prediction, answers: float(prediction in answers)}
    print_report(summarise(rows, metrics), "model on data", Console(file=stream, width=80))
    return stream.getvalue()


def test_figures_are_shown_with_their_denominators() -> None:
    text = text_of([played("1", "A"), played("2", "Z"), played("3", "A", stop="retriever_failed")])
    lines = text.splitlines()
    assert lines[0] == "model on data"
    assert lines[1].split(maxsplit=2)[:2] == ["questions", "n"]
    assert lines[2].split() == ["all", "2", "1.000", "[0.342,", "1.000]", "25.0", "%", "1"]
    assert "bridge [a]" in lines[3]
    assert "95 % intervals: Wilson where every value is 0 or 1 (em)" in text
    assert "25.0 % found, all of them for 0.0 % (of the 2 questions that list them)" in text
    assert "12, 2 of them sampled" in text
    assert "answer 2, retriever_failed 1" in text
    assert "warning: 1 of 3 questions could not be scored" in text


def test_without_searches_there_is_no_hit_rate_and_no_warning() -> None:
    text = text_of([played("1", None)])
    assert "no search was made" in text
    assert "warning" not in text


def test_nothing_scored_is_shown_as_nothing() -> None:
    assert text_of([played("1", "A", stop="retriever_failed")]).splitlines()[2].split() == ["all", "0", "-", "-", "-"]


def test_packs_with_their_kinds_golds_by_id_and_alternatives_apart() -> None:
    def of(row: ScoredTrajectory, **known: Any) -> ScoredTrajectory:
        return replace(row, trajectory=replace(row.trajectory, question=replace(row.trajectory.question, **known)))

    near = of(played("1", "A"), pack="nq", kind="annotated", gold_ids=("p", "q"))
    far = of(played("2", "Z"), pack="nq", kind="distant", gold_ids=("p", "q"), alternatives=True)
    other = of(played("3", "A"), pack="afriqa", kind="single", gold_ids=("r",))
    text = text_of([near, far, other])
    found = ["25.0 %, any 100.0 %", "  0.0 %", "50.0 %, any 100.0 %", "  50.0 %", "  any 100.0 %"]
    lines = text.splitlines()[2:7]
    assert [line.split()[0] for line in lines] == ["all", "afriqa", "nq", "annotated", "distant"]
    assert all(share in line for share, line in zip(found, lines, strict=True))
    assert "any" not in lines[1] + lines[3]
    assert "25.0 % found, all of them for 0.0 % (of the 2 questions that list them, by id)" in text
    assert "100.0 % (of the 1 questions with alternatives)" in text
