"""Stages that branch, merge and train a reranker in between; mixtures by weight, with caps."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_retrieval_llm2vec import beir
from transformers import AutoTokenizer

from cli.train_retriever import train_retriever
from retrieval.encoders.config import ScratchSettings, preset
from retrieval.encoders.loading import load_encoder, new_encoder
from retrieval.encoders.scratch import make_backbone
from retrieval.training.config import SourceSettings
from retrieval.training.merging import check_tokenizers, merge_weights, slerp
from retrieval.training.row import TrainingRow
from retrieval.training.rows import load_rows, write_rows
from retrieval.training.sampling import BatchSampler, apportioned
from sleuth.errors import ArtifactError, ConfigError, DataError
from sleuth.runs import RunFolder
from sleuth.types import Passage
from workflows.retriever_training import load_retriever_run

SCRATCH = {"vocabulary": 120, "hidden_size": 32, "layers": 1, "heads": 2}


def config(folder: Path) -> Path:
    data = str(beir(folder / "data"))
    steps = {"steps": 2, "batch_size": 6, "hard_negatives": 0, "learning_rate": 1e-3}
    dense = {"kind": "dense", "index": "{out}/found", "encoder": "{out}/stage-3/encoder", "corpus": data}
    reranker = {"backbone": "{out}/stage-1/encoder", "steps": 2, "batch_size": 4, "hard_negatives": 2}
    values = {
        "out": str(folder / "run"),
        "encoder": {"preset": "plain", "scratch": SCRATCH, "scratch_corpus": data},
        "data": [{"path": data}],
        "stages": [
            {"name": "weak", "data": [{"path": data, "layout": "beir"}], "training": steps},
            {"name": "lora", "start": "base", "training": {**steps, "lora": {"r": 2}, "learning_rate": 1e-2}},
            {"name": "merged", "kind": "merge", "parts": ["weak", "lora"], "weights": [3, 1]},
            {
                "name": "reranker",
                "kind": "reranker",
                "mining": {"retriever": dense, "negatives": 2},
                "reranker": reranker,
            },
            {
                "name": "distilled",
                "mining": {"retriever": dense, "negatives": 2, "teacher": {"model": "{out}/stage-4/reranker"}},
                "training": {**steps, "hard_negatives": 2, "distillation": {}},
            },
        ],
        "evaluation": {"path": data, "split": "train", "every": 20, "k": 1},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_stages_branch_merge_and_are_distilled_from_a_reranker_of_the_same_rows(tmp_path: Path) -> None:
    path = config(tmp_path)
    train_retriever(path)
    run = tmp_path / "run"
    weak, lora, merged = (load_encoder(run / f"stage-{n}" / "encoder").model.state_dict() for n in (1, 2, 3))
    for name, weight in merged.items():
        if weight.is_floating_point():
            torch.testing.assert_close(weight, (3 * weak[name] + lora[name]) / 4, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(weak[name], lora[name]) for name in weak)
    record = json.loads((run / "stage-3" / "stages" / "merge.json").read_text())
    assert record["weights"] == {"weak": 0.75, "lora": 0.25}
    sources = json.loads((run / "stage-1" / "stages" / "train-1.json").read_text())["sources"]
    assert list(sources.values()) == [{"rows": 12, "weight": None, "path": str(tmp_path / "data")}]
    stages = json.loads((run / "encoder" / "manifest.json").read_text())["stages"]
    assert list(stages) == ["weak", "lora", "merged", "reranker", "distilled"]
    assert stages["weak"]["train-1"]["sources"] == sources and stages["merged"]["merge"]["weights"] == record["weights"]
    assert all(0 <= stages[name]["evaluate"]["recall"] <= 1 for name in ("weak", "lora", "merged"))
    assert "evaluate" not in stages["distilled"] and 0 <= stages["distilled"]["train-1"]["best"] <= 1
    trained = json.loads((run / "stage-4" / "reranker" / "manifest.json").read_text())["trained"]
    assert trained["queries"] == 12 and sum(one["rows"] for one in trained["sources"].values()) == 12
    mined = load_rows([SourceSettings(path=str(run / "stage-5" / "round-1" / "rows.jsonl"))])
    assert all(row.scores for row in mined)
    assert (run / "reranker" / "model.safetensors").exists()
    ended = load_encoder(run / "encoder").fingerprint
    assert ended == load_encoder(run / "stage-5" / "encoder").fingerprint
    before = (run / "stage-3" / "encoder" / "manifest.json").stat().st_mtime_ns
    train_retriever(path, resume=True)
    assert (run / "stage-3" / "encoder" / "manifest.json").stat().st_mtime_ns == before


def test_stages_that_are_interrupted_end_with_the_bytes_of_an_unbroken_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config(tmp_path)
    train_retriever(path, out=tmp_path / "unbroken")
    broken: set[tuple[str, str]] = set()
    mark_done = RunFolder.mark_done

    def interrupted_once(folder: RunFolder, name: str, info: Mapping[str, Any]) -> None:
        if (folder.path.name, name) not in broken:
            broken.add((folder.path.name, name))
            raise KeyboardInterrupt
        mark_done(folder, name, info)

    monkeypatch.setattr(RunFolder, "mark_done", interrupted_once)
    for resume in itertools.chain([False], itertools.repeat(True, 40)):
        with contextlib.suppress(KeyboardInterrupt):
            train_retriever(path, out=tmp_path / "run", resume=resume)
            break
    kinds = {("stage-1", "train-1"), ("stage-2", "train-1"), ("stage-3", "merge"), ("stage-4", "train-1")}
    assert kinds | {("stage-5", "mine-1"), ("stage-5", "train-1"), ("run", "encoder"), ("run", "reranker")} <= broken
    for made in ("encoder", "reranker", *(f"stage-{n}/encoder" for n in (1, 2, 3, 5))):
        whole, resumed = (tmp_path / run / made / "model.safetensors" for run in ("unbroken", "run"))
        assert whole.read_bytes() == resumed.read_bytes(), made


def test_stages_from_scratch_read_the_same_words_whatever_their_rows_are(tmp_path: Path) -> None:
    path, run = config(tmp_path), tmp_path / "run"
    other = TrainingRow("o", "жук", (Passage("o", "", "zanzibar"),))
    write_rows([other], tmp_path / "other.jsonl")
    values = yaml.safe_load(path.read_text())
    values["encoder"]["scratch"] = {**SCRATCH, "vocabulary": 90}
    weak, lora = values["stages"][:2]
    lora["data"] = [
        {"path": str(tmp_path / "other.jsonl")},
        {"path": "{out}/stage-1/round-1/rows.jsonl"},  # is there once the first stage has mined
    ]
    bm25 = {"kind": "bm25", "index": "{out}/bm25", "corpus": str(tmp_path / "data")}
    weak["mining"] = {"retriever": bm25, "negatives": 1}
    merged = {"name": "merged", "kind": "merge", "parts": ["weak", "lora"]}
    path.write_text(yaml.safe_dump({**values, "stages": [weak, lora, merged], "evaluation": None}))
    train_retriever(path)
    made = [AutoTokenizer.from_pretrained(run / f"stage-{n}" / "encoder").get_vocab() for n in (1, 2, 3)]
    assert made[0] == made[1] == made[2] == AutoTokenizer.from_pretrained(run / "backbone").get_vocab()
    assert "ж" in made[0]  # of the queries of the second stage alone
    assert not list(run.glob("stage-*/backbone"))


def test_encoders_with_other_tokenizers_are_not_merged(tmp_path: Path) -> None:
    encoders = {}
    for name, texts in (("a", ["one two", "two one"]), ("b", ["ten two", "two ten"]), ("c", ["one two", "two one"])):
        make_backbone(tmp_path / name, texts, ScratchSettings(vocabulary=64, hidden_size=8, layers=1, heads=1))
        encoders[name] = new_encoder(preset("plain", str(tmp_path / name)), seed=0)
    check_tokenizers({"a": encoders["a"], "c": encoders["c"]})
    with pytest.raises(ArtifactError, match=r"^a and b have different tokenizers, so their word vectors cannot be"):
        check_tokenizers(encoders)


def test_merging_by_dev_weighs_each_by_its_figure_and_measures_the_result(tmp_path: Path) -> None:
    path = config(tmp_path)
    data = str(tmp_path / "data")
    dev = f"{{path: {data}, split: train, k: 5}}"
    stages = yaml.safe_load(path.read_text())["stages"][:3]
    stages[2] = {"name": "merged", "kind": "merge", "parts": ["weak", "lora"], "method": "slerp", "weights": "dev"}
    train_retriever(path, set_=[f"stages={json.dumps(stages)}", f"evaluation={dev}"])
    record = json.loads((tmp_path / "run" / "stage-3" / "stages" / "merge.json").read_text())
    parts = record["parts"]
    assert record["weights"]["weak"] == pytest.approx(parts["weak"] / sum(parts.values()))
    assert record["mean_of_parts"] == pytest.approx(sum(parts.values()) / 2) and 0 <= record["best"] <= 1


def test_rows_that_were_mined_keep_their_mixture_and_the_manifest_names_its_sources(tmp_path: Path) -> None:
    path, data, few = config(tmp_path), tmp_path / "data", tmp_path / "few.jsonl"
    write_rows(load_rows([SourceSettings(path=str(data))])[:3], few)
    values = yaml.safe_load(path.read_text())
    dense = {"kind": "dense", "index": "{out}/found", "encoder": "{out}/stage-1/encoder", "corpus": str(data)}
    sources = [{"path": str(few), "weight": 3, "cap": 2, "limit": 3}, {"path": str(data)}]
    steps = {"steps": 2, "batch_size": 4, "hard_negatives": 1}
    mined = {"name": "mined", "data": sources, "mining": {"retriever": dense, "negatives": 2}, "training": steps}
    path.write_text(yaml.safe_dump({**values, "stages": [values["stages"][0], mined], "evaluation": None}))
    train_retriever(path)
    trained = json.loads((tmp_path / "run" / "stage-2" / "encoder" / "manifest.json").read_text())["trained"]
    assert trained["queries"] == 14
    assert trained["sources"] == {
        "0": {"rows": 2, "weight": 3.0, "path": str(few)},
        "1": {"rows": 12, "weight": 1.0, "path": str(data)},
    }


def test_the_manifest_of_a_reranker_tells_what_it_learnt_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, rows = config(tmp_path), load_rows([SourceSettings(path=str(tmp_path / "data"))])
    full = [replace(row, negatives=rows[i - 1].positives) for i, row in enumerate(rows)]
    files = {"mined": [*full[:5], *rows[5:7]], "bare": rows[7:]}
    for name, some in files.items():
        write_rows(some, tmp_path / f"{name}.jsonl")
    values = yaml.safe_load(path.read_text())
    data = [{"path": str(tmp_path / f"{name}.jsonl"), "weight": 2} for name in files]
    reranker = {"name": "reranker", "kind": "reranker", "data": data, "reranker": values["stages"][3]["reranker"]}
    path.write_text(yaml.safe_dump({**values, "stages": [values["stages"][0], reranker], "evaluation": None}))
    train_retriever(path)
    trained = json.loads((tmp_path / "run" / "reranker" / "manifest.json").read_text())["trained"]
    assert (trained["queries"], trained["left_out"]) == (5, 7)
    assert trained["sources"] == {
        "0": {"rows": 5, "left_out": 2, "weight": 2.0, "path": data[0]["path"]},
        "1": {"rows": 0, "left_out": 5, "weight": 2.0, "path": data[1]["path"]},
    }
    assert "no row of source 1 is drawn: the loss bce needs negatives" in caplog.text


def test_stages_that_do_not_follow_from_others_are_refused(tmp_path: Path) -> None:
    path = config(tmp_path)
    for override, message in (
        ("stages.2.parts=[weak, later]", "starts from 'later', an encoder that no stage before it makes"),
        ("stages.4.start=reranker", "starts from 'reranker'"),
        ("stages.2.weights=[1]", "1 weights are given for 2 stages"),
        ("stages.2.parts=[weak, weak]", "'weak' is merged with itself"),
        ("stages.2.weights=dev", "weights: dev needs an evaluation: give the stage one"),
        ("stages.2.kind=murge", "unknown kind of stage; did you mean 'merge'"),
        ("stages.2.training={steps: 3}", "training does nothing for a stage of kind merge, only for train"),
        ("data=[]", "there are no queries to train on"),
        ("stages.2.evaluation={path: x, every: 3}", "evaluation.every does nothing for a merge, which takes no steps"),
        ("stages.2.evaluation={path: x, patience: 3}", "evaluation.patience does nothing for a merge"),
        ("stages.0.rounds=2", "stage weak: rounds above 1 need an encoder and a mining section"),
        ("stages.3.evaluation={path: x, passages: 5}", "stage reranker: evaluation.passages does nothing for kind rer"),
        ("stages.3.evaluation={path: x, beside: [y]}", "stage reranker: evaluation.beside does nothing for kind rer"),
        (
            "stages.3.reranker.first_stage={kind: bm25, index: x, corpus: y}",
            "stage reranker: reranker.first_stage, without evaluation, does nothing for kind reranker",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            load_retriever_run(path, [override])


def test_a_reranker_that_ends_the_stages_is_watched_where_it_has_candidates(tmp_path: Path) -> None:
    path, data, run = config(tmp_path), tmp_path / "data", tmp_path / "run"
    values = yaml.safe_load(path.read_text())
    bare = load_rows([SourceSettings(path=str(data))])
    full = [replace(row, negatives=bare[i - 1].positives) for i, row in enumerate(bare)]
    write_rows(bare, tmp_path / "bare.jsonl")
    write_rows(full, tmp_path / "full.jsonl")
    last = {**values["stages"][3], "mining": None, "data": [{"path": str(tmp_path / "full.jsonl")}]}
    values |= {"evaluation": {**values["evaluation"], "passages": 12}}

    def ends_with(**given: object) -> None:
        path.write_text(yaml.safe_dump({**values, "stages": [values["stages"][0], {**last, **given}]}))
        train_retriever(path, overwrite=True)

    with pytest.raises(DataError, match=r"12 of 12 queries of .*bare.jsonl carry no negatives"):
        ends_with(evaluation={"path": str(tmp_path / "bare.jsonl")})
    assert not (run / "stage-1").exists()
    record = run / "stage-2" / "stages" / "train-1.json"
    told: Callable[[], dict[str, object]] = lambda: json.loads(record.read_text())
    ends_with()
    assert told()["best"] is None
    bm25 = {"kind": "bm25", "index": str(tmp_path / "bm25"), "corpus": str(data)}
    ends_with(reranker={**last["reranker"], "first_stage": bm25})
    assert told()["best"] is not None and "first_stage" in told()


def test_slerp_keeps_the_length_of_the_arc_and_linear_the_mean() -> None:
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(slerp(x, y, 0.5), torch.full((2,), math.sqrt(0.5)))
    torch.testing.assert_close(slerp(x, y, 1 / 3), torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)]))
    torch.testing.assert_close(slerp(x, 3 * x, 0.25), torch.tensor([1.5, 0.0]))  # parallel: on the line
    torch.testing.assert_close(slerp(torch.zeros(2), y, 0.5), 0.5 * y)
    parts = [{"w": x, "n": torch.tensor([1])}, {"w": y, "n": torch.tensor([2])}, {"w": -x, "n": torch.tensor([3])}]
    linear = merge_weights(parts, [2, 1, 1], "linear")
    torch.testing.assert_close(linear["w"], torch.tensor([0.25, 0.25]))
    assert linear["n"].item() == 1 and merge_weights(parts[:2], [0.5, 0.5], "slerp")[
        "w"
    ].norm().item() == pytest.approx(1)
    for method in ("linear", "slerp"):  # what found nothing on a dev set counts for nothing, wherever it stands
        torch.testing.assert_close(merge_weights(parts, [0, 0, 1], method)["w"], -x)
        torch.testing.assert_close(merge_weights(parts, [0, 1, 0], method)["w"], y)
    with pytest.raises(ArtifactError, match="differ in w"):
        merge_weights([{"w": x}, {"w": torch.zeros(3)}], [1, 1], "linear")


def rows_of(source: str, count: int, weight: float | None) -> list[TrainingRow]:
    passages = (Passage(f"{source}{i}", "", f"text {source} {i}") for i in range(count))
    return [
        TrainingRow(f"{source}{i}", f"q {source} {i}", (p,), source=source, share=weight)
        for i, p in enumerate(passages)
    ]


def test_a_source_has_the_part_of_every_batch_that_its_weight_says() -> None:
    rows = [*rows_of("a", 100, 1.0), *rows_of("b/of a file", 7, 3.0)]
    sampler = BatchSampler(rows, 8, 0, 0)
    batches = [[row for _, row in sampler.rows(step)] for step in range(20)]
    assert all(Counter(row.source[0] for row in batch) == {"a": 2, "b": 6} for batch in batches)
    seen = Counter(row.id for batch in batches for row in batch if row.source == "a")
    assert len(seen) == 40 and set(seen.values()) == {1}
    assert sampler.steps(1.0) == math.ceil(107 / 8)
    again = BatchSampler(rows, 8, 0, 0)
    assert [row.id for _, row in again.rows(13)] == [row.id for row in batches[13]]


def test_one_source_a_batch_has_turns_by_weight() -> None:
    rows = [*rows_of("a", 64, 1.0), *rows_of("b", 16, 3.0)]
    sampler = BatchSampler(rows, 8, 0, 0, one_source=True)
    turns = Counter()
    for step in range(40):
        (source,) = {row.source for _, row in sampler.rows(step)}
        turns[source] += 1
    assert turns["b"] == pytest.approx(30, abs=2)
    ids = Counter(row.id for step in range(40) for _, row in sampler.rows(step) if row.source == "a")
    assert max(ids.values()) - min(ids.values()) <= 1


def test_a_source_of_little_weight_is_drawn_as_often_as_it_says() -> None:
    rows = [*rows_of("a", 6, 0.01), *rows_of("b", 12, 1.0)]
    for one_source in (False, True):
        sampler = BatchSampler(rows, 6, 0, 0, one_source=one_source)
        steps = 202
        drawn = [{row.source for _, row in sampler.rows(step)} for step in range(steps)]
        seen = Counter(row.source for step in range(steps) for _, row in sampler.rows(step))
        assert seen["a"] == pytest.approx(sum(seen.values()) / 101, abs=6) and seen["a"] >= 6
        assert all(len(sources) == 1 for sources in drawn) or not one_source
        assert sampler.not_drawn(steps) == [] and sampler.not_drawn(3) == ["a"]
        again = BatchSampler(rows, 6, 0, 0, one_source=one_source)
        assert [again.rows(step) for step in (150, 7)] == [sampler.rows(step) for step in (150, 7)]


def test_a_source_smaller_than_its_part_begins_anew_within_a_batch() -> None:
    rows = [*rows_of("a", 6, 3.0), *rows_of("b", 12, 1.0)]
    sampler = BatchSampler(rows, 16, 0, 0)
    for step in range(12):
        assert Counter(row.source for _, row in sampler.rows(step)) == {"a": 12, "b": 4}
        assert set(Counter(row.id for _, row in sampler.rows(step) if row.source == "a").values()) == {2}
    odd = BatchSampler(rows, 6, 0, 0)
    counts = [Counter(row.source for _, row in odd.rows(step)) for step in range(4)]
    assert all(count.total() == 6 for count in counts) and sum(counts, Counter()) == {"a": 18, "b": 6}
    batch = BatchSampler(rows, 16, 0, 0).batch(0)
    assert len(batch.queries) == 16 and len(set(batch.queries)) == 10


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 100))
def test_parts_add_up_are_near_to_exact_and_never_fall(weights: list[float], total: int) -> None:
    parts, more = apportioned(weights, total), apportioned(weights, total + 1)
    assert (sum(parts), sum(more)) == (total, total + 1)
    assert all(few <= many for few, many in zip(parts, more, strict=True))
    for part, weight in zip(parts, weights, strict=True):
        share = weight / sum(weights)
        assert abs(part - total * share) <= 0.5 + share * len(weights) / 2 + 1e-9


def test_the_weight_of_a_single_source_changes_nothing_inside_it(tmp_path: Path) -> None:
    path = str(tmp_path / "own.jsonl")
    write_rows([*rows_of("hotpot", 90, None), *rows_of("nq", 10, None)], path)
    plain, weighted = (load_rows([SourceSettings(path=path, weight=weight)]) for weight in (None, 2))
    assert plain == weighted
    sampler = BatchSampler(weighted, 10, 0, 0)
    drawn = Counter(row.source for step in range(10) for _, row in sampler.rows(step))
    assert drawn == {"hotpot": 90, "nq": 10}
    mixed = [SourceSettings(path=path, weight=1), SourceSettings(path=path, cap=10)]
    write_rows(load_rows(mixed), path)  # the file says parts of its own now, which a weight of the whole leaves
    assert {row.share for row in load_rows([SourceSettings(path=path, weight=2)])} == {1.0}


def test_caps_draw_from_the_whole_source_and_weights_survive_a_file(tmp_path: Path) -> None:
    write_rows(rows_of("", 50, None), tmp_path / "a.jsonl")
    write_rows(rows_of("", 5, None), tmp_path / "b.jsonl")
    given_ = [
        SourceSettings(path=str(tmp_path / "a.jsonl"), cap=10, weight=2),
        SourceSettings(path=str(tmp_path / "b.jsonl")),
    ]
    rows = load_rows(given_)
    of_a = [row for row in rows if row.source == "0"]
    assert (len(of_a), len(rows)) == (10, 15) and load_rows(given_) == rows
    assert [row.id for row in of_a] != [str(i) for i in range(10)]
    assert {row.share for row in of_a} == {2.0} and {row.share for row in rows[10:]} == {1.0}
    write_rows(rows, tmp_path / "mined.jsonl")
    assert load_rows([SourceSettings(path=str(tmp_path / "mined.jsonl"))]) == rows
    (tmp_path / "bad.jsonl").write_text('{"query": "q", "positive_passages": [{"text": "x"}], "share": -1}\n')
    with pytest.raises(DataError, match="'share' is not a finite number above 0"):
        load_rows([SourceSettings(path=str(tmp_path / "bad.jsonl"))])
