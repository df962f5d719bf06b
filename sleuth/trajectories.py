"""Trajectories on disk: JSON lines during a run, one Parquet file when it is closed, one reader for both.

A line is one scored trajectory with every field of ``types.py``: ``{"trajectory": {"question", "segments", "turns",
"stop", "timings", "given"}, "reward", "parts", "origin"}``. An action is identified by its keys: ``queries`` (search;
``query`` in files of before a search could have several), ``tool`` and ``arguments`` (call), ``text`` (answer) or
``reason`` (invalid). ``trajectory_table.py`` has the Parquet columns.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pydantic import TypeAdapter, ValidationError

from sleuth.errors import DataError
from sleuth.trajectory_table import read_table, write_table
from sleuth.types import ScoredTrajectory

CLOSED = "trajectories.parquet"
_LINES = ("trajectories*.jsonl", "step-*.jsonl")
"""Matches the files that a run appends to or writes once per step."""


def to_dict(scored: ScoredTrajectory) -> dict[str, Any]:
    """``scored`` as plain JSON values; ``from_dict`` returns an equal object."""
    values: dict[str, Any] = _adapter().dump_python(scored, mode="python")
    played = values["trajectory"]
    for hit in [*played["given"], *(hit for turn in played["turns"] for hit in turn["hits"])]:
        _name_image(hit["passage"])
    return values


def _name_image(passage: dict[str, Any]) -> None:
    """Keep name and digest of a passage's picture, not its bytes; passages of text alone have no such key."""
    image = passage.pop("image")
    if image is not None:
        passage["image"] = {"name": image["name"], "sha256": image["sha256"]}


def to_line(scored: ScoredTrajectory) -> str:
    """One row of a trajectory file, newline included. ASCII, since outside text may contain lone surrogates."""
    return json.dumps(to_dict(scored)) + "\n"


def from_dict(values: Mapping[str, Any]) -> ScoredTrajectory:
    """The trajectory that ``to_dict`` wrote. Raises DataError naming the first field that does not fit."""
    try:
        return _adapter().validate_python(_with_queries(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "row"
        raise DataError(f"not a trajectory: {field}: {first['msg']}") from None


def _with_queries(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """``values`` with a list of queries for every search, as it is since a search can have several."""
    played = values.get("trajectory")
    turns = played.get("turns") if isinstance(played, Mapping) else None
    if not isinstance(turns, list | tuple):
        return values
    return {**values, "trajectory": {**played, "turns": [_turn_with_queries(turn) for turn in turns]}}  # type: ignore[dict-item]


def _turn_with_queries(turn: Any) -> Any:
    action = turn.get("action") if isinstance(turn, Mapping) else None
    if not isinstance(action, Mapping) or "query" not in action:
        return turn
    return {**turn, "action": {"queries": [action["query"]]}}


class TrajectoryWriter:
    """Appends scored trajectories to a jsonl file, flushing after each so that a killed run can be resumed.

    A last line without its newline was truncated by a crash; it is dropped when the file is reopened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = open_for_append(self.path)

    def write(self, scored: ScoredTrajectory) -> None:
        self._file.write(to_line(scored))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_trajectories(path: str | Path) -> Iterator[ScoredTrajectory]:
    """The trajectories of a .jsonl file, a .parquet file, or a folder of either, one at a time.

    A closed folder is read from its Parquet file, one that is still growing from its JSON lines in order of file name.
    Raises DataError naming the file and the row.
    """
    source = Path(path)
    if source.is_dir():
        for file in trajectory_files(source):
            yield from read_trajectories(file)
        return
    table = source.suffix == ".parquet"
    rows = enumerate(read_table(source), start=1) if table else read_jsonl(source)
    for number, row in rows:
        try:
            yield from_dict(row)
        except DataError as error:
            raise DataError(f"{path}, {'row' if table else 'line'} {number}: {error.message}") from None


def from_line(line: bytes, where: str) -> ScoredTrajectory:
    """The trajectory of one row of a .jsonl file. Raises DataError whose message starts with ``where``."""
    try:
        return from_dict(_parse(line, where))
    except DataError as error:
        raise error if error.message.startswith(where) else DataError(f"{where}: {error.message}") from None


def trajectory_files(folder: str | Path) -> list[Path]:
    """The files that hold a folder's trajectories; an empty list if there are none."""
    closed = Path(folder) / CLOSED
    return [closed] if closed.exists() else _growing(Path(folder))


def close_trajectories(folder: str | Path) -> Path | None:
    """Convert the JSON lines of a finished folder into one Parquet file; None if there are none.

    The lines are deleted once the Parquet file is complete. Closing is idempotent, also after a crash.
    """
    closed = Path(folder) / CLOSED
    if not closed.exists():
        lines = _growing(Path(folder))
        if not lines:
            return None
        write_table(closed, (to_dict(scored) for file in lines for scored in read_trajectories(file)))
    for file in _growing(Path(folder)):
        file.unlink()
    return closed


def _growing(folder: Path) -> list[Path]:
    return sorted(file for pattern in _LINES for file in folder.glob(pattern))


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) for every non-blank line. Raises DataError naming the file and the line."""
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _parse(line, f"{path}, line {number}")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def open_for_append(path: Path) -> IO[str]:
    """Open a jsonl file for appending; anything after its last newline is a truncated row and is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(_end_of_last_line(file))
    return path.open("a", encoding="utf-8")


def _end_of_last_line(file: IO[bytes], block: int = 1 << 16) -> int:
    end = file.seek(0, 2)
    while end > 0:
        start = max(0, end - block)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        hint = "" if line.endswith(b"\n") else "the last line is truncated: delete it, or resume the run that wrote it"
        raise DataError(f"{where}: not valid JSON", hint) from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: not a JSON object")
    return row


@functools.cache
def _adapter() -> TypeAdapter[ScoredTrajectory]:
    return TypeAdapter(ScoredTrajectory)
