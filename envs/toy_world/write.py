"""Writes a made-up world as a folder of files in standard formats.

``corpus.jsonl`` (BEIR), ``train|dev|test.jsonl`` (FlashRAG questions), ``plans_train|plans_dev.jsonl``
(demonstrations), ``queries.jsonl`` with ``qrels/*.tsv`` (BEIR), ``vocabulary.txt`` (one word piece per line),
``manifest.json``. There are two sets of judged queries: ``qrels/dev.tsv`` judges whole questions by the
passages of the entities named in the question (later entities are named only in passages);
``qrels/dev_searches.tsv`` judges the individual searches of a perfect demonstrator.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.plans import question_row, write_plans
from envs.toy_world.config import SPLITS
from envs.toy_world.generate import World
from envs.toy_world.questions import CHAIN_KINDS
from sleuth.artifacts import atomic_folder, write_manifest
from sleuth.types import Plan

KIND = "world"


def write_world(world: World, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write all files of ``world`` atomically.

    Raises ArtifactError if the folder exists and may not be overwritten.
    """
    with atomic_folder(folder, overwrite=overwrite) as out:
        _write_lines(out / "corpus.jsonl", ({"_id": p.id, "title": p.title, "text": p.text} for p in world.passages))
        for split in SPLITS:
            _write_lines(out / f"{split}.jsonl", (question_row(plan.question) for plan in world.plans[split]))
        write_plans(out / "plans_train.jsonl", world.plans["train"])
        write_plans(out / "plans_dev.jsonl", world.plans["dev"])
        _write_retrieval_task(world, out)
        (out / "vocabulary.txt").write_text("".join(f"{piece}\n" for piece in world.vocabulary), encoding="utf-8")
        counts: dict[str, int] = {split: len(world.plans[split]) for split in SPLITS}
        counts["passages"] = len(world.passages)
        write_manifest(out, KIND, {"settings": world.settings.model_dump(mode="json"), "counts": counts})


def read_vocabulary(folder: str | Path) -> list[str]:
    """The word pieces of a world folder."""
    return (Path(folder) / "vocabulary.txt").read_text(encoding="utf-8").splitlines()


def named_titles(plan: Plan) -> Sequence[str]:
    """The supporting titles that the question itself names, possibly by an alias."""
    titles = plan.question.supporting_titles
    return titles[:1] if plan.question.kind in CHAIN_KINDS else titles


def _write_retrieval_task(world: World, out: Path) -> None:
    ids = {passage.title: passage.id for passage in world.passages}
    queries = []
    for split in SPLITS:
        judged, searched = [], []
        for plan in world.plans[split]:
            question = plan.question
            queries.append({"_id": question.id, "text": question.text})
            judged += [(question.id, ids[title]) for title in named_titles(plan)]
            for number, (step, title) in enumerate(zip(plan.steps, question.supporting_titles, strict=True), start=1):
                query_id = f"{question.id}-s{number}"
                queries.append({"_id": query_id, "text": step.query})
                searched.append((query_id, ids[title]))
        _write_qrels(out / "qrels" / f"{split}.tsv", judged)
        _write_qrels(out / "qrels" / f"{split}_searches.tsv", searched)
    _write_lines(out / "queries.jsonl", queries)


def _write_qrels(path: Path, judged: Iterable[tuple[str, str]]) -> None:
    path.parent.mkdir(exist_ok=True)
    rows = "".join(f"{query}\t{passage}\t1\n" for query, passage in judged)
    path.write_text(f"query-id\tcorpus-id\tscore\n{rows}", encoding="utf-8")


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
