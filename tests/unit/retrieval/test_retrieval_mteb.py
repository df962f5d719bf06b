"""mteb's own runner over our encoders, cross-encoders and retrievers, on tasks made up here; and results it reads."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

mteb = pytest.importorskip("mteb", reason="needs the extra mteb: pip install 'sleuth-rl[mteb]'")

from datasets import Dataset  # noqa: E402
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from retrieval.encoders.config import preset  # noqa: E402
from retrieval.encoders.loading import new_encoder, open_encoder  # noqa: E402
from retrieval.evaluation.mteb_results import TASKS, mteb_measures, task_name, write_mteb_results  # noqa: E402
from sleuth.errors import ConfigError, MissingExtraError  # noqa: E402
from workflows.mteb_tasks import TaskScore, run_tasks  # noqa: E402

TOWNS = ("Arden", "Brill", "Corvo", "Dunmore", "Estray", "Fallow")
CORPUS = [{"id": f"d{i}", "title": t, "text": f"{t} is a town on the river {t}water."} for i, t in enumerate(TOWNS)]
QUERIES = [{"id": f"q{i}", "text": f"which river is {town} on"} for i, town in enumerate(TOWNS)]
QRELS = {f"q{i}": {f"d{i}": 1, f"d{(i + 1) % 6}": 1} for i in range(len(TOWNS))}
PAIRS = [(f"{a} is a town", f"the river {b}water", float(a == b)) for a in TOWNS for b in TOWNS[:3]]


def metadata(name: str, kind: str, score: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="made up",
        type=kind,
        main_score=score,
        eval_langs=["eng-Latn"],
        eval_splits=["test"],
        dataset={"path": "made/up", "revision": "1"},
    )


class MadeRetrieval(AbsTaskRetrieval):
    metadata = metadata("MadeRetrieval", "Retrieval", "ndcg_at_10")
    ranked: ClassVar[dict[str, list[str]] | None] = None

    def load_data(self, **_: Any) -> None:
        made = {"corpus": Dataset.from_list(CORPUS), "queries": Dataset.from_list(QUERIES)}
        self.dataset = {"default": {"test": {**made, "relevant_docs": QRELS, "top_ranked": self.ranked}}}
        self.data_loaded = True


class MadeReranking(MadeRetrieval):
    metadata = metadata("MadeReranking", "Reranking", "map_at_1000")
    ranked: ClassVar = {f"q{i}": [f"d{(i + step) % 6}" for step in (3, 1, 0)] for i in range(len(TOWNS))}


class MadeSTS(AbsTaskSTS):
    metadata = metadata("MadeSTS", "STS", "cosine_spearman")

    def load_data(self, **_: Any) -> None:
        rows = [{"sentence1": a, "sentence2": b, "score": score} for a, b, score in PAIRS]
        self.dataset = {"test": Dataset.from_list(rows)}
        self.data_loaded = True


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "made", sys.modules[__name__])


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory, backbone: Path) -> Path:
    """An encoder that reads queries and passages by different prompts."""
    path = tmp_path_factory.mktemp("prompted") / "encoder"
    prompts = {"query_prompt": "river town on ", "passage_prompt": "is a "}
    new_encoder(preset("plain", str(backbone), query_max_tokens=32, passage_max_tokens=48, **prompts)).save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The retrieval task as a folder of BEIR."""
    path = tmp_path_factory.mktemp("beir") / "made"
    (path / "qrels").mkdir(parents=True)
    (path / "corpus.jsonl").write_text("\n".join(json.dumps({**row, "_id": row["id"]}) for row in CORPUS))
    (path / "queries.jsonl").write_text("\n".join(json.dumps({**row, "_id": row["id"]}) for row in QUERIES))
    lines = [f"{query}\t{passage}\t1" for query, judged in QRELS.items() for passage in judged]
    (path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines))
    return path


def run(given: object, *tasks: str, cache: Path | None = None) -> list[TaskScore]:
    return run_tasks(str(given), [], [f"made:{task}" for task in tasks], None, cache, 4)


def figures(*arguments: object) -> dict[str, Any]:
    from typer import Typer

    from cli.evaluate_retrieval import evaluate_retrieval

    app = Typer()
    app.command()(evaluate_retrieval)
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_an_encoder_ranks_in_mteb_as_it_does_here(prompted: Path, folder: Path, tmp_path: Path) -> None:
    (mtebs,) = run(prompted, "MadeRetrieval")
    dense = f"{{kind: dense, index: {tmp_path / 'dense'}, encoder: {prompted}}}"
    ours = figures(dense, "--beir", folder, "--measures", "nDCG@10 nDCG@1 AP")
    assert 0 < ours["nDCG@1"] < 1
    assert mtebs.score == pytest.approx(ours["nDCG@10"], abs=1e-5)
    assert mtebs.scores["test"][0]["ndcg_at_1"] == pytest.approx(ours["nDCG@1"], abs=1e-5)
    (of_index,) = run(tmp_path / "dense", "MadeRetrieval")  # the encoder that an index was made with
    assert of_index.score == mtebs.score


def test_a_retriever_searches_an_index_of_each_corpus(folder: Path, tmp_path: Path) -> None:
    settings = f"{{kind: bm25, index: {tmp_path}/{{set}}}}"
    retrieval, reranking = run(settings, "MadeRetrieval", "MadeReranking")
    ours = figures(settings, "--beir", folder, "--measures", "nDCG@10")
    assert retrieval.score == pytest.approx(ours["nDCG@10"], abs=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"MadeRetrieval-test", "MadeReranking-test", "made"}
    assert 0 < reranking.score <= 1
    assert run(settings, "MadeRetrieval")[0].score == retrieval.score  # the index is there, of the same passages


def test_reranking_and_sts_are_those_of_the_encoders_vectors(prompted: Path) -> None:
    from scipy.stats import spearmanr

    encoder = open_encoder(prompted)
    reranking, sts = run(prompted, "MadeReranking", "MadeSTS")
    asked = encoder.encode_texts([row["text"] for row in QUERIES], "query").values.numpy()
    held = encoder.encode_texts([f"{row['title']} {row['text']}" for row in CORPUS], "passage").values.numpy()
    precisions = []
    for number, (query, candidates) in enumerate(MadeReranking.ranked.items()):
        ranked = sorted(candidates, key=lambda name: -float(asked[number] @ held[int(name[1:])]))
        hits = [place for place, name in enumerate(ranked, start=1) if name in QRELS[query]]
        precisions.append(sum((i + 1) / place for i, place in enumerate(hits)) / 2)
    assert reranking.score == pytest.approx(float(np.mean(precisions)), abs=1e-5)
    a, b = (encoder.encode_texts([pair[side] for pair in PAIRS], "query").values.numpy() for side in (0, 1))
    assert sts.score == pytest.approx(spearmanr((a * b).sum(1), [pair[2] for pair in PAIRS]).statistic, abs=1e-4)


def test_a_cross_encoder_reranks(backbone: Path, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    CrossEncoder(str(backbone), num_labels=1).save_pretrained(str(tmp_path / "cross"))
    (found,) = run(tmp_path / "cross", "MadeReranking")
    assert 0 < found.score <= 1


def test_what_mteb_finished_is_not_run_again(prompted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = run(prompted, "MadeSTS", cache=tmp_path)
    monkeypatch.setattr(MadeSTS, "load_data", lambda *_, **__: pytest.fail("run again"))
    assert run(prompted, "MadeSTS", cache=tmp_path)[0].score == pytest.approx(first.score, abs=1e-6)


def test_figures_are_read_by_mteb(folder: Path, tmp_path: Path) -> None:
    settings = f"{{kind: bm25, index: {tmp_path}/{{set}}}}"
    (folder.parent / "scifact").symlink_to(folder)
    arguments = ("--beir", folder, "--beir", folder.parent / "scifact", "--mteb-json", tmp_path / "results")
    ours = figures(settings, *arguments, "--model-name", "someone/bm25")
    cache = mteb.ResultCache(tmp_path / "results")
    read = cache.load_results(models=["someone/bm25"], tasks=["SciFact"])
    result = read.model_results[0].task_results[0]
    assert result.get_score() == pytest.approx(ours["sets"]["scifact"]["nDCG@10"], abs=1e-6)
    assert result.scores["test"][0]["recall_at_100"] == pytest.approx(ours["sets"]["scifact"]["R@100"], abs=1e-6)
    assert read.to_dataframe().shape[0] == 1


def test_names_are_those_of_mteb(tmp_path: Path) -> None:
    known = {task.metadata.name for task in mteb.get_tasks(task_types=["Retrieval"], exclude_superseded=False)}
    assert set(TASKS.values()) <= known
    from retrieval.evaluation.benchmarks import DOMAINS, LONG_DOMAINS

    names = [f"bright-{d}" for d in DOMAINS] + [f"bright-{d}-long" for d in LONG_DOMAINS]
    assert {task_name(name) for name in names} <= known
    place = write_mteb_results(tmp_path, "runs/a b", "1", {"x": ("test", dict.fromkeys(mteb_measures(), 0.5))})
    assert place == tmp_path / "results" / "sleuth__runs-a-b" / "1"
    assert mteb.TaskResult.from_disk(place / "x.json").scores["test"][0]["mrr_at_10"] == 0.5


def test_an_encoder_of_another_family_searches_by_its_index(prompted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from retrieval.encoders.family import Dense

    made = open_encoder(prompted)
    monkeypatch.setattr(made, "family", Dense("multivector"))
    monkeypatch.setattr("workflows.mteb_tasks._encoder", lambda _: made)
    with pytest.raises(ConfigError, match=r"one vector of each text.*kind: multivector, .* index: FOLDER/.set."):
        run(prompted, "MadeRetrieval")


def test_mistakes_are_one_clear_line(prompted: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given, task, message in (
        (prompted, "SciFct", "did you mean 'SciFact'"),
        (index, "made:MadeSTS", "is an index of other passages"),
        (f"{{kind: bm25, index: {index}}}", "made:MadeSTS", "write {set} in its folder"),
        (prompted, "made:Absent", "made has no 'Absent'"),
    ):
        with pytest.raises(ConfigError) as caught:
            run_tasks(str(given), [], [task], None, None, 4)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sleuth-rl\[mteb\]'"):
        run(prompted, "MadeSTS")
