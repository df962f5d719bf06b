"""Prints a trajectory. Sampled and inserted tokens differ by colour and, in a pipe, by label."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from cli.console import called, plain
from sleuth.evidence import Golds, golds_of
from sleuth.types import Answer, Call, Hit, Invalid, Origin, ScoredTrajectory, Source, Trajectory, Turn

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
    if question.gold_ids:
        _field(console, "gold", " | ".join(question.gold_ids) + (", any of them" if question.alternatives else ""))
    golds = golds_of(question)
    for hit in trajectory.given:
        _hit(console, "given", hit, golds)
    lengths: dict[Source, int] = {"prompt": 0, "policy": 0, "environment": 0}
    for segment in trajectory.segments:
        lengths[segment.source] += len(segment.token_ids)
    for number, turn in enumerate(trajectory.turns, start=1):
        _turn(console, number, turn, golds)
        _earned(console, row, number - 1)
    console.print()
    _field(console, "ended by", trajectory.stop)
    if trajectory.failure:
        _field(console, "failure", str(trajectory.failure))
        for line in trajectory.failure.trace.splitlines():
            _print(console, f"  {plain(line)}", "dim")
    reward = "unscored" if row.reward is None else f"{row.reward:.4g}"
    parts = ", ".join(f"{name} {'-' if value is None else f'{value:.4g}'}" for name, value in row.parts.items())
    _field(console, "reward", f"{reward}  ({parts})" if parts else reward)
    if row.origin and row.origin.advantage is not None:
        _field(console, "advantage", f"{row.origin.advantage:+.4g}")
    _field(console, "tokens", ", ".join(f"{source} {count}" for source, count in lengths.items()))
    _field(console, "seconds", ", ".join(f"{stage} {value:.3f}" for stage, value in trajectory.timings.items()))


def show_tokens(
    trajectory: Trajectory, console: Console, texts: Mapping[int, str] | None = None, origin: Origin | None = None
) -> None:
    """Print one line per token: position, mask (1: sampled by the policy, trained on), source, id, log-prob, text.

    With the ``origin`` of a rollout, also the advantage of each token that was trained on.
    """
    advantages = iter(_by_token(trajectory, origin) if origin else [])
    weighted = f"  {'advantage':>9}" if origin else ""
    console.print()
    console.print(
        Text(f"{'position':>8}  mask  {'source':<6}  {'id':>8}  {'log-prob':>9}{weighted}  text", style="bold")
    )
    position = 0
    for segment in trajectory.segments:
        trained = int(segment.source == "policy")
        for offset, token in enumerate(segment.token_ids):
            logprob = f"{segment.logprobs[offset]:9.4f}" if offset < len(segment.logprobs) else " " * 9
            text = repr(texts.get(token, "?")) if texts else ""
            weight = f"  {next(advantages) if trained else '':>9}" if origin else ""
            line = f"{position:>8}  {trained:>4}  {_LETTERS[segment.source]:<6}  {token:>8}  {logprob}{weight}  {text}"
            _print(console, line.rstrip(), _STYLES[segment.source])
            position += 1


def _by_token(trajectory: Trajectory, origin: Origin) -> list[str]:
    """The advantage of each sampled token, as text."""
    lengths = trajectory.turn_lengths
    known = origin.advantages
    if known is None:
        known = (origin.advantage,) * len(lengths) if origin.advantage is not None else ()
    if len(known) == len(lengths):
        known = tuple(value for value, length in zip(known, lengths, strict=True) for _ in range(length))
    return [f"{value:+.4f}" for value in known] or [""] * sum(lengths)


def _earned(console: Console, row: ScoredTrajectory, turn: int) -> None:
    """What the turn earned by itself, and its advantage where turns differ."""
    score = row.turn_scores[turn] if row.turn_scores and turn < len(row.turn_scores) else None
    said = [] if score is None else [f"score {score:.4g}"]
    if row.origin and row.origin.advantages and len(row.origin.advantages) == len(row.trajectory.turn_lengths):
        said.append(f"advantage {row.origin.advantages[turn]:+.4g}")
    if said:
        _field(console, "  credit", ", ".join(said))


def _turn(console: Console, number: int, turn: Turn, golds: Golds) -> None:
    console.print()
    _block(console, f"turn {number}", turn.text, "policy")
    action = turn.action
    for query, hits in turn.found:
        _field(console, "  search", query)
        for hit in hits:
            _hit(console, "  hit", hit, golds)
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


def _hit(console: Console, label: str, hit: Hit, golds: Golds) -> None:
    mark = "" if golds.of(hit.passage) is None else "  gold"
    _field(console, f"{label} {hit.rank}", f"{hit.score:.3f}  {hit.passage.title}  [{hit.passage.id}]{mark}")


def _block(console: Console, label: str, text: str, source: Source) -> None:
    for line in text.strip("\n").split("\n") or [""]:
        _print(console, f"{label:<12}{'|' if source == 'environment' else '>'} {plain(line)}", _STYLES[source])
        label = ""


def _field(console: Console, label: str, value: str) -> None:
    _print(console, f"{label:<12}{plain(value)}")


def _print(console: Console, line: str, style: str = "") -> None:
    console.print(Text(line, style=style), soft_wrap=True)
