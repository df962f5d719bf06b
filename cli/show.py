"""Prints a trajectory. Sampled and inserted tokens differ by colour and, in a pipe, by label."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from cli.console import called, plain
from sleuth.types import Answer, Call, Hit, Invalid, ScoredTrajectory, Source, Trajectory, Turn

_STYLES: dict[Source, str] = {"prompt": "dim", "policy": "bold green", "environment": "blue"}
_LETTERS: dict[Source, str] = {"prompt": "prompt", "policy": "POLICY", "environment": "env"}


def show_turns(row: ScoredTrajectory, console: Console) -> None:
    """Print the question, the turns with hits and observations, the stop reason and the reward."""
    trajectory = row.trajectory
    question = trajectory.question
    _field(console, "question", f"{question.text}  [{question.id}{', ' + question.kind if question.kind else ''}]")
    _field(console, "accepted", " | ".join(question.answers))
    if question.supporting_titles:
        _field(console, "supporting", " | ".join(question.supporting_titles))
    for hit in trajectory.given:
        _hit(console, "given", hit)
    lengths: dict[Source, int] = {"prompt": 0, "policy": 0, "environment": 0}
    for segment in trajectory.segments:
        lengths[segment.source] += len(segment.token_ids)
    for number, turn in enumerate(trajectory.turns, start=1):
        _turn(console, number, turn)
    console.print()
    _field(console, "ended by", trajectory.stop)
    reward = "unscored" if row.reward is None else f"{row.reward:.4g}"
    parts = ", ".join(f"{name} {'-' if value is None else f'{value:.4g}'}" for name, value in row.parts.items())
    _field(console, "reward", f"{reward}  ({parts})" if parts else reward)
    _field(console, "tokens", ", ".join(f"{source} {count}" for source, count in lengths.items()))
    _field(console, "seconds", ", ".join(f"{stage} {value:.3f}" for stage, value in trajectory.timings.items()))


def show_tokens(trajectory: Trajectory, console: Console, texts: Mapping[int, str] | None = None) -> None:
    """Print one line per token: position, mask (1: sampled by the policy, trained on), source, id, log-prob, text."""
    console.print()
    console.print(Text(f"{'position':>8}  mask  {'source':<6}  {'id':>8}  {'log-prob':>9}  text", style="bold"))
    position = 0
    for segment in trajectory.segments:
        trained = int(segment.source == "policy")
        for offset, token in enumerate(segment.token_ids):
            logprob = f"{segment.logprobs[offset]:9.4f}" if offset < len(segment.logprobs) else " " * 9
            text = repr(texts.get(token, "?")) if texts else ""
            line = f"{position:>8}  {trained:>4}  {_LETTERS[segment.source]:<6}  {token:>8}  {logprob}  {text}"
            _print(console, line.rstrip(), _STYLES[segment.source])
            position += 1


def _turn(console: Console, number: int, turn: Turn) -> None:
    console.print()
    _block(console, f"turn {number}", turn.text, "policy")
    action = turn.action
    for query, hits in turn.found:
        _field(console, "  search", query)
        for hit in hits:
            _hit(console, "  hit", hit)
    if isinstance(action, Call):
        _field(console, "  call", called(action))
    elif isinstance(action, Answer):
        _field(console, "  answer", action.text)
    elif isinstance(action, Invalid):
        _field(console, "  invalid", action.reason)
    if turn.failure:
        _field(console, "  failed", turn.failure)
    if turn.observation:
        _block(console, "inserted", turn.observation, "environment")


def _hit(console: Console, label: str, hit: Hit) -> None:
    _field(console, f"{label} {hit.rank}", f"{hit.score:.3f}  {hit.passage.title}  [{hit.passage.id}]")


def _block(console: Console, label: str, text: str, source: Source) -> None:
    for line in text.strip("\n").split("\n") or [""]:
        _print(console, f"{label:<12}{'|' if source == 'environment' else '>'} {plain(line)}", _STYLES[source])
        label = ""


def _field(console: Console, label: str, value: str) -> None:
    _print(console, f"{label:<12}{plain(value)}")


def _print(console: Console, line: str, style: str = "") -> None:
    console.print(Text(line, style=style), soft_wrap=True)
