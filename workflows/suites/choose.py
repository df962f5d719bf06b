"""Finds the questions of a suite's sets and draws those that are asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.questions import questions_from_rows
from hub.reach import hub_or_cache, reachable
from sleuth.artifacts import atomic_write, text_digest
from sleuth.errors import DataError, did_you_mean
from sleuth.files import on_hub
from sleuth.rows import RawRow, name_of, read_rows
from sleuth.seeding import drawn
from workflows.suites.config import SetSettings, SuiteSettings

Key = tuple[str, str]
"""Id and text of a question: ids of two files may coincide."""


@dataclass(frozen=True, slots=True)
class ChosenSet:
    """The questions of one set: ``lines`` of JSON as they are asked, of ``total`` that it has.

    ``labels``: by field of ``by``, the value of every question.
    """

    name: str
    settings: SetSettings
    source: str
    lines: Sequence[str]
    total: int
    labels: Mapping[str, Mapping[Key, str]]

    @property
    def title(self) -> str:
        return self.settings.title or self.name

    @property
    def record(self) -> dict[str, Any]:
        """What identifies the questions; a resumed evaluation must have the same."""
        told = {"source": self.source, "questions": len(self.lines), "of": self.total}
        return {**told, "sha256": text_digest("".join(self.lines))}

    def write(self, file: Path) -> None:
        atomic_write(file, "".join(self.lines))


def choose_sets(
    suite: SuiteSettings, name: str, limit: int | None = None, *, skip_missing: bool = False
) -> tuple[list[ChosenSet], list[str]]:
    """The sets of the suite ``name`` with at most ``limit`` questions each, and the names of those left out.

    Raises DataError, before anything is asked: a set is nowhere (unless ``skip_missing``), or has no such questions.
    """
    found: list[ChosenSet] = []
    missing: dict[str, list[str]] = {}
    for set_name, settings in suite.sets.items():
        source, looked = _find(settings.files)
        if source is None:
            missing[set_name] = looked
        else:
            found.append(_chosen(set_name, settings, source, suite.seed, limit))
    if missing and not (skip_missing and found):
        first, looked = next(iter(missing.items()))
        others = f" (nor are {', '.join(list(missing)[1:])})" if len(missing) > 1 else ""
        get = suite.sets[first].get
        hints = [get, "leave out what is missing with --skip-missing" if found else ""]
        raise DataError(
            f"suite {name}: the set {first} is not here{others}; looked for {', '.join(looked)}",
            "; or ".join(hint for hint in hints if hint),
        )
    return found, list(missing)


def _find(files: Sequence[str]) -> tuple[str | None, list[str]]:
    """The first source that is there, and what was looked at and why it would not do."""
    looked: list[str] = []
    for file in dict.fromkeys(files):
        if not on_hub(file):
            if Path(file).is_file():
                return file, looked
            looked.append(file)
        elif _on_the_hub(file, looked):
            return file, looked
    return None, looked


def _on_the_hub(name: str, looked: list[str]) -> bool:
    try:
        with hub_or_cache(name):
            read_rows(name, 1)
    except DataError:
        looked.append(f"{name} ({'the hub has no such split' if reachable() else 'the hub cannot be reached'})")
        return False
    return True


def _chosen(name: str, settings: SetSettings, source: str, seed: int, limit: int | None) -> ChosenSet:
    with hub_or_cache(source):
        rows = read_rows(source)
    kept = rows
    for key, wanted in settings.where.items():
        there, kept = kept, [row for row in kept if _value(row, key) in wanted]
        if not kept:
            values = sorted({_value(row, key) for row in there} - {""})
            hint = did_you_mean(wanted[0], values) if values else f"its rows have no field '{key}'"
            raise DataError(f"{source} has no question whose {key} is {', '.join(wanted)}", hint)
    limits = [number for number in (limit, settings.limit) if number is not None]
    asked = drawn(kept, min(limits, default=len(kept)), f"{seed}/{name}")
    questions = questions_from_rows(asked, name_of(source), file=source)
    keys = [(question.id, question.text) for question in questions]
    lines = [_line(row, question.id) for row, question in zip(asked, questions, strict=True)]
    labels = {field: dict(zip(keys, [_value(row, field) for row in asked], strict=True)) for field in settings.by}
    return ChosenSet(name, settings, source, lines, len(kept), labels)


def _value(row: RawRow, key: str) -> str:
    """A field of the row, or of its metadata; blank if it has none."""
    metadata = row.fields.get("metadata")
    value = row.fields.get(key, metadata.get(key) if isinstance(metadata, Mapping) else None)
    return "" if value is None else str(value)


def _line(row: RawRow, identity: str) -> str:
    """The row as it was released, with its id where that came from its place in the file."""
    named = {} if {"_id", "id"} & row.fields.keys() else {"id": identity}
    return json.dumps({**named, **row.fields}, ensure_ascii=False, default=str) + "\n"
