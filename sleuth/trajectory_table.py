"""Trajectories as Parquet: one row each, nested columns, readable by ``datasets.load_dataset("parquet", ...)``.

The columns mirror ``types.py``. ``token_ids``, ``policy_mask`` and ``logprobs`` (0 where the policy did not sample) are
added as flat columns, ready to train on; reading trajectories back does not need them.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleuth.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_IN_GROUP = 256
_MARK = "\ufdd0"
"""A Unicode noncharacter used as an escape: four hexadecimal digits follow, for what UTF-8 cannot encode."""
_UNSTORABLE = re.compile(f"[\ud800-\udfff{_MARK}]")
_STORED = re.compile(f"{_MARK}([0-9a-f]{{4}})")
_WORDS = {"answer": "text", "invalid": "reason"}
"""Kind of an action that is one text -> the field that holds it."""


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write trajectories, as returned by ``to_dict``, atomically to ``path``. Returns their number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, count = _schema(), 0
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for batch in _batches(rows):
                writer.write_table(pa.Table.from_pylist([_to_row(values) for values in batch], schema=schema))
                count += len(batch)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def read_table(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of ``path`` as ``from_dict`` takes them, with one row group in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or 'not a Parquet file'}") from None
    except pa.ArrowInvalid:
        raise DataError(f"{path} is not a Parquet file", "it may be truncated: copy it again") from None
    with file:
        there = file.schema_arrow.names
        missing = [name for name in _READ if name not in there]
        if missing:
            raise DataError(f"{path} is not a trajectory file: it has no column '{missing[0]}'")
        columns = [*_READ, *(name for name in _ADDED if name in there)]
        for batch in file.iter_batches(batch_size=ROWS_IN_GROUP, columns=columns):
            yield from map(_from_row, batch.to_pylist())


_READ = ("question", "segments", "turns", "stop", "timings", "given", "reward", "parts", "origin")
_ADDED = ("failure", "turn_scores")
"""Columns that older files do not have."""


def _batches(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    source = iter(rows)
    while batch := list(itertools.islice(source, ROWS_IN_GROUP)):
        yield batch


def _to_row(values: Mapping[str, Any]) -> dict[str, Any]:
    played = values["trajectory"]
    segments = played["segments"]
    row = {
        "question": played["question"],
        "stop": played["stop"],
        "failure": played["failure"],
        "reward": values["reward"],
        "parts": _pairs(values["parts"]),
        "origin": values["origin"],
        "turn_scores": values["turn_scores"],
        "segments": segments,
        "turns": [{**turn, "action": _to_action(turn["action"])} for turn in played["turns"]],
        "timings": _pairs(played["timings"]),
        "given": played["given"],
        "token_ids": [token for segment in segments for token in segment["token_ids"]],
        "policy_mask": [int(s["source"] == "policy") for s in segments for _ in s["token_ids"]],
        "logprobs": [number for segment in segments for number in _padded(segment)],
    }
    storable: dict[str, Any] = _map_text(row, _storable)
    return storable


def _from_row(row: Mapping[str, Any]) -> dict[str, Any]:
    plain = _map_text(row, _restored)
    turns = [{**turn, "action": _from_action(turn["action"])} for turn in plain["turns"]]
    played = {name: plain[name] for name in ("question", "segments", "stop", "given", *_ADDED) if name in plain}
    return {
        "trajectory": {**played, "turns": turns, "timings": _mapping(plain["timings"])},
        "reward": plain["reward"],
        "parts": _mapping(plain["parts"]),
        "origin": plain["origin"],
        "turn_scores": plain.get("turn_scores"),
    }


def _to_action(action: Mapping[str, Any]) -> dict[str, Any]:
    """``text`` is the answer, the reason, all queries on one line, or a call's arguments as JSON."""
    if "queries" in action:
        return {"kind": "search", "text": "; ".join(action["queries"]), "queries": list(action["queries"])}
    if "tool" in action:
        return {"kind": "call", "text": json.dumps(action["arguments"]), "tool": action["tool"]}
    kind = next(kind for kind, field in _WORDS.items() if field in action)
    return {"kind": kind, "text": action[_WORDS[kind]]}


def _from_action(action: Mapping[str, Any]) -> dict[str, Any]:
    """Older files have neither ``queries`` nor ``tool``."""
    kind, text = action["kind"], action["text"]
    if kind == "search":
        return {"queries": action.get("queries") or [text]}
    if kind == "call":
        return {"tool": action["tool"], "arguments": json.loads(text)}
    return {_WORDS[kind]: text}


def _padded(segment: Mapping[str, Any]) -> list[float]:
    """A log-prob for every token; 0 where there is none."""
    known = list(segment["logprobs"])[: len(segment["token_ids"])]
    return known + [0.0] * (len(segment["token_ids"]) - len(known))


def _pairs(numbers: Mapping[str, float | None]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in numbers.items()]


def _mapping(pairs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {pair["name"]: pair["value"] for pair in pairs}


def _map_text(value: Any, change: Callable[[str], str]) -> Any:
    """``value`` with ``change`` applied to every string in it."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _map_text(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple) and value and not isinstance(value[0], int | float):
        return [_map_text(item, change) for item in value]
    return value


def _storable(text: str) -> str:
    return _UNSTORABLE.sub(lambda match: f"{_MARK}{ord(match[0]):04x}", text)


def _restored(text: str) -> str:
    return _STORED.sub(lambda match: chr(int(match[1], 16)), text) if _MARK in text else text


def _schema() -> pa.Schema:
    import pyarrow as pa

    text, number, whole = pa.string(), pa.float64(), pa.int64()
    named = pa.list_(pa.struct({"name": text, "value": number}))
    image = pa.struct({"name": text, "sha256": text})
    passage = pa.struct({"id": text, "title": text, "text": text, "image": image})
    hits = pa.list_(pa.struct({"passage": passage, "score": number, "rank": whole}))
    tokens = {"token_ids": pa.list_(whole), "logprobs": pa.list_(number)}
    generation = pa.struct({**tokens, "finish_reason": text, "policy_version": whole})
    texts = pa.list_(text)
    action = pa.struct({"kind": text, "text": text, "queries": texts, "tool": text})
    question = {"id": text, "text": text, "answers": texts, "supporting_titles": texts, "kind": text, "file": text}
    question |= {"pack": text, "gold_ids": texts, "alternatives": pa.bool_()}
    question["steps"] = pa.list_(pa.struct({"question": text, "answer": text}))
    turn = {"generation": generation, "text": text, "action": action, "hits": hits, "observation": text}
    turn |= {"thinking": pa.bool_(), "hits_per_query": pa.list_(whole), "failure": text}
    return pa.schema(
        {
            "question": pa.struct(question),
            "stop": text,
            "failure": pa.struct({"by": text, "error": text, "trace": text}),
            "reward": number,
            "parts": named,
            "origin": pa.struct({"step": whole, "group": whole, "advantage": number, "advantages": pa.list_(number)}),
            "turn_scores": pa.list_(number),
            "segments": pa.list_(pa.struct({"source": text, **tokens})),
            "turns": pa.list_(pa.struct(turn)),
            "timings": named,
            "given": hits,
            "token_ids": pa.list_(whole),
            "policy_mask": pa.list_(pa.int8()),
            "logprobs": pa.list_(number),
        }
    )
