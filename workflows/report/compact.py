"""Packs runs and sampled trajectories into one small JSON value, the only data of a page.

Texts shared by many trajectories (questions, prompts, passages) are stored once, in tables, and referenced by index.
Log-probs are rounded to a thousandth. Whatever does not fit is omitted, which the page says.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sleuth.evidence import golds_of
from sleuth.statistics import explained, methods_of
from sleuth.types import Action, Answer, Call, Hit, Invalid, Question, ScoredTrajectory, Search, Segment, Trajectory
from workflows.paired import MEASURES, system_name
from workflows.report.changes import pack_changes
from workflows.report.collect import RunData, read_run, run_names
from workflows.report.sample import Group, Sample, choose
from workflows.report.thumbnails import Thumbnails, make_thumbnails

POINTS = 400
"""Longer series are thinned to this many points."""
_SOURCES = {"prompt": 0, "policy": 1, "environment": 2}


@dataclass(slots=True)
class Tables:
    """Every distinct value once, in order of appearance."""

    questions: dict[Question, int] = field(default_factory=dict)
    passages: dict[tuple[str, str], int] = field(default_factory=dict)
    pages: dict[int, str] = field(default_factory=dict)
    """Digests of the pictures of passages, by their index."""
    prompts: dict[tuple[int, ...], int] = field(default_factory=dict)
    tokens: dict[Path, set[int]] = field(default_factory=dict)

    def dump(self, thumbnails: Mapping[str, str]) -> dict[str, Any]:
        questions = [
            {"id": q.id, "text": q.text, "answers": q.answers, "titles": q.supporting_titles, "kind": q.kind}
            | {"pack": q.pack, "gold": q.gold_ids, "any": int(q.alternatives)}
            for q in self.questions
        ]
        pages = {place: thumbnails[digest] for place, digest in self.pages.items() if digest in thumbnails}
        return {"questions": questions, "passages": list(self.passages), "prompts": list(self.prompts), "pages": pages}


def pack_runs(paths: Sequence[Path], limit: int, budget: int) -> bytes:
    """The page's JSON for these run folders: ``limit`` trajectories (see `choose`) and ``budget`` compressed bytes."""
    runs = [read_run(path, name) for path, name in zip(paths, run_names(paths), strict=True)]
    return pack(runs, choose(runs, limit), budget)


def pack(runs: Sequence[RunData], samples: Sequence[Sample], budget: int) -> bytes:
    """The page's JSON, compressed with gzip, in at most ``budget`` bytes if possible.

    First token ids and log-probs are omitted from evenly spread trajectories, then whole groups, those of questions
    whose answer changed last.
    """
    changes = pack_changes(samples)
    thumbnails = make_thumbnails(samples, [index for run in runs for index in run.indexes], budget // 3)
    tokens, rows = 1.0, 1.0
    while True:
        packed = gzip.compress(_dump(runs, samples, tokens, rows, changes, thumbnails), 6, mtime=0)
        if len(packed) <= budget or rows < 0.01:
            return packed
        shrink = 0.9 * budget / len(packed)
        if tokens > 0.25:
            tokens = max(tokens * shrink, 0.2)
        else:
            tokens, rows = tokens * shrink, rows * shrink


def unpack(packed: bytes) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(gzip.decompress(packed))
    return content


def _dump(
    runs: Sequence[RunData],
    samples: Sequence[Sample],
    tokens: float,
    fraction: float,
    changes: Mapping[str, Any],
    thumbnails: Thumbnails,
) -> bytes:
    tables = Tables()
    sources, rows, with_tokens = [], [], 0
    for place, sample in enumerate(samples):
        groups = _most_of(sample, fraction)
        detailed = {id(group) for group in _every(groups, tokens)}
        for group in groups:
            full = id(group) in detailed
            with_tokens += len(group) if full else 0
            rows += [{"s": place, **_row(scored, tables, runs[sample.run].tokenizer, full)} for scored in group]
        source = sample.source
        sources.append(
            {
                "run": sample.run,
                "name": source.name,
                "training": source.training,
                "order": source.order,
                "total": sample.total,
                "shown": sum(map(len, groups)),
            }
        )
    content = {
        "runs": [_run(run, list(tables.tokens)) for run in runs],
        "intervals": explained("95 % intervals", (_shown_methods(e) for run in runs for e in run.evaluations.values())),
        "sources": sources,
        "changes": changes,
        "rows": rows,
        "tables": tables.dump(thumbnails.made),
        "vocabularies": [_vocabulary(path, sorted(used)) for path, used in tables.tokens.items()],
        "left_out": [
            *_left_out(sources, len(rows), with_tokens),
            *thumbnails.left_out,
            *(text for sample in samples for text in sample.damaged),
        ],
    }
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii")


def _most_of(sample: Sample, fraction: float) -> list[Group]:
    """The given ``fraction`` of the groups of ``sample``, those of changed answers first."""
    changed, rest = sample.groups[: sample.changed], sample.groups[sample.changed :]
    count = fraction * len(sample.groups)
    if count < len(changed):
        return list(_every(changed, count / len(changed)))
    return [*changed, *_every(rest, (count - len(changed)) / max(len(rest), 1))]


def _every(groups: Sequence[Any], fraction: float) -> Iterable[Any]:
    """The given ``fraction`` of the groups, evenly spread, including the first and the last."""
    count = max(round(len(groups) * fraction), min(len(groups), 1))
    if count >= len(groups):
        return groups
    return [groups[round(i * (len(groups) - 1) / max(count - 1, 1))] for i in range(count)]


def _row(scored: ScoredTrajectory, tables: Tables, tokenizer: Path | None, full: bool) -> dict[str, Any]:
    """Short names, since they occur in every row: q question, w reward, p parts, a advantage, g group, t turns.

    ``as``: advantages by turn, or by sampled token if they differ within a turn; ``ts``: turn scores.
    """
    played = scored.trajectory
    row: dict[str, Any] = {
        "q": tables.questions.setdefault(played.question, len(tables.questions)),
        "w": _number(scored.reward),
        "p": {name: _number(value) for name, value in scored.parts.items()},
        "stop": played.stop,
        **({"fail": str(played.failure)} if played.failure else {}),
        "n": [_length(played, source) for source in _SOURCES],
        "sec": {name: _number(value) for name, value in played.timings.items()},
        "t": [
            {
                "x": turn.text,
                "k": _kind(turn.action),
                "c": _content(turn.action),
                "h": _hits(turn.hits, played.question, tables),
                "o": turn.observation,
                "f": turn.generation.finish_reason,
                "v": turn.generation.policy_version,
                **({"n": len(turn.action.queries)} if isinstance(turn.action, Search) else {}),
                **({"e": turn.failure} if turn.failure else {}),
                **({"i": 1} if turn.thinking else {}),
            }
            for turn in played.turns
        ],
    }
    if played.given:
        row["given"] = _hits(played.given, played.question, tables)
    if scored.origin:
        row |= {"step": scored.origin.step, "g": scored.origin.group, "a": _number(scored.origin.advantage)}
        if scored.origin.advantages is not None and (full or len(scored.origin.advantages) == len(played.turns)):
            row["as"] = list(map(_number, scored.origin.advantages))
    if scored.turn_scores is not None:
        row["ts"] = list(map(_number, scored.turn_scores))
    if full:
        row["seg"] = [_segment(segment, tables) for segment in played.segments]
        if tokenizer:
            tables.tokens.setdefault(tokenizer, set()).update(played.token_ids)
    return row


def _segment(segment: Segment, tables: Tables) -> list[Any]:
    """[source, token ids, log-probs in thousandths]; for a prompt [0, its index in the table]."""
    if segment.source == "prompt":
        return [0, tables.prompts.setdefault(segment.token_ids, len(tables.prompts))]
    logprobs = [max(round(1000 * value), -99_999) if value > -1e9 else -99_999 for value in segment.logprobs]
    return [_SOURCES[segment.source], segment.token_ids, *([logprobs] if logprobs else [])]


def _length(played: Trajectory, source: str) -> int:
    return sum(len(segment.token_ids) for segment in played.segments if segment.source == source)


def _kind(action: Action) -> str:
    return {Search: "search", Call: "call", Answer: "answer", Invalid: "invalid"}[type(action)]


def _content(action: Action) -> str:
    if isinstance(action, Search):
        return "\n".join(action.queries)
    if isinstance(action, Call):
        return f"{action.tool} {json.dumps(action.arguments, ensure_ascii=False)}"
    return action.reason if isinstance(action, Invalid) else action.text


def _hits(hits: Iterable[Hit], question: Question, tables: Tables) -> list[list[Any]]:
    """[index in the table of passages, score, whether it is a gold passage] in order of rank."""
    golds = golds_of(question)
    rows = []
    for hit in hits:
        place = tables.passages.setdefault((hit.passage.id, hit.passage.title), len(tables.passages))
        if hit.passage.image is not None:
            tables.pages[place] = hit.passage.image.sha256
        rows.append([place, _number(hit.score), int(golds.of(hit.passage) is not None)])
    return rows


def _run(run: RunData, tokenizers: Sequence[Path | None]) -> dict[str, Any]:
    return {
        "name": run.name,
        "path": str(run.path),
        "finished": run.finished,
        "stages": run.stages,
        "gate": run.gate,
        "config": {key: _setting(key, value, str(run.config.get("out", ""))) for key, value in run.config.items()},
        "series": {name: _drawn(points) for name, points in run.series.items()},
        "evaluations": {name: _figures(values) for name, values in run.evaluations.items()},
        "suite": _suite(run.suite),
        "rounds": run.rounds,
        "groups": {name: _groups(values) for name, values in run.evaluations.items()},
        "vocabulary": tokenizers.index(run.tokenizer) if run.tokenizer in tokenizers else None,
    }


def _suite(suite: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The table of a suite: its columns, and a row for whatever answers."""
    if suite is None:
        return None
    rows = [
        {
            "name": system_name(row),
            "sets": row["em"]["sets"],
            "mean": [row["em"]["mean"], *row["em"]["mean_interval"]],
            "others": {name: row[name]["mean"] for name in MEASURES[1:] if name in row},
        }
        for row in suite["systems"]
        if "em" in row
    ]
    columns = [{key: one[key] for key in ("name", "title", "group", "questions", "sha256")} for one in suite["sets"]]
    return {"sets": columns, "systems": rows}


def _drawn(points: Sequence[tuple[int, float]]) -> list[list[float | None]]:
    return [[step, _number(value)] for step, value in _every(points, min(1.0, POINTS / max(len(points), 1)))]


def _figures(values: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers and intervals at the top level of an evaluation's metrics.json, as shown in the table."""
    plain = {name: v for name, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    intervals = {name: v for name, v in values.items() if name.endswith("_interval") and isinstance(v, list)}
    return {name: _number(value) for name, value in plain.items()} | {
        name: [_number(bound) for bound in bounds] for name, bounds in intervals.items()
    }


def _groups(values: Mapping[str, Any]) -> list[list[Any]]:
    """[pack or kind, its depth, figures] of every pack, each with its kinds, or of every kind; none of older files."""
    packs, kinds = values.get("by_pack") or {}, values.get("by_kind") or {}
    rows: list[tuple[str, int, Mapping[str, Any]]] = []
    for pack, figures in packs.items():
        rows.append((pack, 0, figures))
        rows += [(kind, 1, of) for kind, of in figures.get("by_kind", {}).items()]
    if not packs:
        rows += [(kind, 0, of) for kind, of in kinds.items()]
    return [[name, depth, _figures(figures) | _recalls(figures)] for name, depth, figures in rows]


def _recalls(figures: Mapping[str, Any]) -> dict[str, float | None]:
    found = {"gold_recall": figures.get("gold"), "alternatives_recall": figures.get("alternatives")}
    return {name: _number(of["recall"]) for name, of in found.items() if of}


def _shown_methods(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: method for name, method in methods_of(values).items() if name in ("em", "f1")}


def _vocabulary(tokenizer: Path, used: Sequence[int]) -> dict[int, str]:
    """The text of the tokens that the page shows."""
    from tokenizers import Tokenizer

    texts = Tokenizer.from_file(str(tokenizer)).decode_batch([[token] for token in used], skip_special_tokens=False)
    return dict(zip(used, texts, strict=True))


def _left_out(sources: Sequence[Mapping[str, Any]], shown: int, with_tokens: int) -> list[str]:
    total = sum(source["total"] for source in sources)
    said = []
    if shown < total:
        spread = "others evenly spread over steps and questions"
        said.append(f"{shown} of {total} trajectories are shown: those whose answer changed, {spread}")
    if with_tokens < shown:
        said.append(f"token ids and log-probs are kept for {with_tokens} of the {shown}")
    return said


def _number(value: float | None) -> float | None:
    """Rounded to six significant digits; None for NaN and infinity."""
    if value is None or value != value or abs(value) == float("inf"):
        return None
    return int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.6g}")


def _setting(key: str, value: Any, out: str) -> Any:
    """A setting as one value, with the run's folder written as ``{out}`` so that it does not count as a difference."""
    if value is None or isinstance(value, bool | int | float):
        return _number(value) if isinstance(value, float) else value
    if out and key != "out":
        value = _relative(value, out.rstrip("/"))
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _relative(value: Any, out: str) -> Any:
    """``value`` with the folder ``out`` at the start of a path replaced by ``{out}``."""
    if isinstance(value, list):
        return [_relative(item, out) for item in value]
    if isinstance(value, dict):
        return {key: _relative(item, out) for key, item in value.items()}
    inside = isinstance(value, str) and (value == out or value.startswith(f"{out}/"))
    return "{out}" + value[len(out) :] if inside else value
