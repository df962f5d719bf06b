"""A world folder holds the field's formats, whole, and what was written is what was made."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from envs.plans import read_plans
from envs.toy_world.config import SPLITS, WorldSettings
from envs.toy_world.generate import World, generate_world
from envs.toy_world.write import KIND, named_titles, read_vocabulary, write_world
from sleuth.artifacts import read_manifest
from sleuth.errors import ArtifactError

SETTINGS = WorldSettings(
    films=60, people=60, companies=40, cities=40, countries=20, train=60, dev=20, test=20, paraphrase=0.5
)


@pytest.fixture(scope="module")
def world() -> World:
    return generate_world(SETTINGS)


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "world"
    write_world(world, out)
    return out


def _rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_questions_and_passages_are_written_in_the_fields_formats(world: World, folder: Path) -> None:
    assert _rows(folder / "corpus.jsonl") == [{"_id": p.id, "title": p.title, "text": p.text} for p in world.passages]
    for split in SPLITS:
        for row, plan in zip(_rows(folder / f"{split}.jsonl"), world.plans[split], strict=True):
            question = plan.question
            assert row == {
                "id": question.id,
                "question": question.text,
                "golden_answers": list(question.answers),
                "metadata": {"type": question.kind, "supporting_titles": list(question.supporting_titles)},
            }


def test_plans_come_back_as_they_were(world: World, folder: Path) -> None:
    for split in ("train", "dev"):
        assert read_plans(folder / f"plans_{split}.jsonl") == list(world.plans[split])


def test_judgements_name_queries_and_passages_that_exist(world: World, folder: Path) -> None:
    titles = {p.id: p.title for p in world.passages}
    queries = {row["_id"]: row["text"] for row in _rows(folder / "queries.jsonl")}
    for split in SPLITS:
        for name, expected in (("", named_titles), ("_searches", lambda plan: plan.question.supporting_titles)):
            header, *lines = (folder / "qrels" / f"{split}{name}.tsv").read_text().splitlines()
            assert header == "query-id\tcorpus-id\tscore"
            judged = defaultdict(list)
            for line in lines:
                query, passage, score = line.split("\t")
                assert score == "1"
                assert query in queries
                judged[query.split("-s")[0]].append(titles[passage])
            for plan in world.plans[split]:
                assert judged[plan.question.id] == list(expected(plan))


def test_the_manifest_says_how_it_was_made_and_nothing_is_overwritten_unasked(world: World, folder: Path) -> None:
    manifest = read_manifest(folder, KIND, "sleuth world")
    assert WorldSettings.model_validate(manifest["settings"]) == SETTINGS
    assert manifest["counts"] == {"train": 60, "dev": 20, "test": 20, "passages": 220}
    with pytest.raises(ArtifactError, match="exists already"):
        write_world(world, folder)
    assert read_vocabulary(folder) == list(world.vocabulary)


def test_the_same_world_is_written_byte_for_byte(world: World, folder: Path, tmp_path: Path) -> None:
    write_world(generate_world(SETTINGS), tmp_path / "again")
    for path in folder.rglob("*"):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name
