"""A whole run from rows to index by the command, with rounds; a reranker; bad settings in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml

from cli.train_retriever import _print_figures, mine, train_retriever
from retrieval.config import RetrieverSettings
from retrieval.encoders.config import DenseChoice, EncoderKind
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.loading import load_encoder, open_encoder
from retrieval.open import open_retriever
from sleuth.errors import ArtifactError, ConfigError, DataError
from sleuth.types import Hit, Passage
from workflows.indexing import build_bm25_index
from workflows.retriever_training import load_retriever_run

WORDS = ["amber", "birch", "coral", "delta", "ember", "fjord", "grove", "heath", "islet", "jetty", "knoll", "larch"]
PASSAGES = [Passage(f"p{i}", word.capitalize(), f"This is about {word}.") for i, word in enumerate(WORDS)]


class Everything:
    """Finds all passages, in their order, for any query."""

    fingerprint = "everything"

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [[Hit(p, -float(i), i + 1) for i, p in enumerate(PASSAGES[:k])] for _ in queries]


def beir(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": p.id, "title": p.title, "text": p.text} for p in PASSAGES]
    queries = [{"_id": f"q{i}", "text": f"tell of {word}"} for i, word in enumerate(WORDS)]
    for name, lines in (("corpus", rows), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")
    judged = "".join(f"q{i}\tp{i}\t1\n" for i in range(len(WORDS)))
    (folder / "qrels" / "train.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", encoding="utf-8")
    return folder


def config(folder: Path, **changes: Any) -> Path:
    data = str(beir(folder / "data"))
    values = {
        "out": str(folder / "run"),
        "encoder": {
            "preset": "plain",
            "scratch": {"vocabulary": 120, "hidden_size": 32, "layers": 1, "heads": 2, "dropout": 0.0},
            "scratch_corpus": data,
            "settings": {"query_max_tokens": 16, "passage_max_tokens": 16},
        },
        "data": [{"path": data}],
        "mining": {"retriever": {"kind": "test_retrieval_training_pipeline:Everything"}, "last_rank": 3},
        "training": {"batch_size": 6, "steps": 40, "learning_rate": 5e-3, "log_steps": 10},
        "evaluation": {"path": data, "split": "train", "every": 20, "k": 1},
        "index": {"path": "{out}/index", "corpus": data, "evaluate": {"path": data, "split": "train", "k": 1}},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values | changes), encoding="utf-8")
    return path


def test_two_rounds_end_in_an_index_that_finds_what_was_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "test_retrieval_training_pipeline", sys.modules[__name__])
    path = config(tmp_path, rounds=2, round_corpus=str(tmp_path / "data"))
    train_retriever(path)
    run = tmp_path / "run"
    first = [json.loads(line) for line in (run / "round-1" / "rows.jsonl").read_text().splitlines()]
    second = [json.loads(line) for line in (run / "round-2" / "rows.jsonl").read_text().splitlines()]
    assert [p["docid"] for p in first[5]["negative_passages"]] == ["p0", "p1", "p2"]
    assert all(f"p{i}" not in [p["docid"] for p in row["negative_passages"]] for i, row in enumerate(second))
    assert first != second
    assert (run / "round-1" / "curves.png").stat().st_size > 1000
    steps = [json.loads(line)["step"] for line in (run / "round-1" / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [0, 10, 20, 30, 40]
    hits = open_retriever(run / "index").search(["tell of coral"], 1)
    assert hits[0][0].passage.title == "Coral"
    assert load_encoder(run / "encoder").settings.passage_max_tokens == 16
    assert json.loads((run / "stages" / "index.json").read_text())["recall"] >= 0.9
    before = (run / "encoder" / "manifest.json").stat().st_mtime_ns
    train_retriever(path, resume=True)
    assert (run / "encoder" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(ArtifactError, match="already holds a run"):
        train_retriever(path)
    stage = json.loads((run / "stages" / "train-2.json").read_text())
    assert 10 < stage["peak_mib"] < 100_000
    said = capsys.readouterr().err
    assert "recall" in said and f"peak_mib {stage['peak_mib']:,}" in said


def test_what_was_mined_or_indexed_before_does_not_stop_the_run(tmp_path: Path) -> None:
    """The index of the miner, and the mined rows, may lie in the run's own folder."""
    retriever = {"kind": "bm25", "index": "{out}/bm25", "corpus": str(tmp_path / "data")}
    path = config(tmp_path, mining={"retriever": retriever}, evaluation=None, index=None)
    few = ["training.steps=2"]
    out = tmp_path / "run" / "rows.jsonl"
    mine(path, out, few)
    mine(path, out, few)
    made = (tmp_path / "run" / "bm25" / "manifest.json").stat().st_mtime_ns
    train_retriever(path, few)
    assert (tmp_path / "run" / "bm25" / "manifest.json").stat().st_mtime_ns == made
    mine(path, out, few)  # and after it
    with pytest.raises(ArtifactError, match="already holds a run"):
        train_retriever(path, few)
    build_bm25_index(str(tmp_path / "data"), tmp_path / "other" / "bm25", None, None, None, None, {})
    train_retriever(path, few, tmp_path / "other")
    mine(path, tmp_path / "alone.jsonl", [*few, f"mining.retriever.index={tmp_path}/other/bm25", f"out={tmp_path}/no"])
    assert not (tmp_path / "no").exists()


class OtherSettings(DenseChoice):
    """A family of encoders beside the dense one, which reads the same folders."""

    LOADER: ClassVar[str] = "test_retrieval_training_pipeline:load_other"

    kind: Literal["other"] = "other"  # type: ignore[assignment]
    heads: int = 1


LOADED: list[Any] = []


def load_other(source: Any, *, device: str | None = None) -> Encoder:
    LOADED.append(source)
    return load_encoder(source if isinstance(source, str) else str(getattr(source, "backbone", source)))


def test_an_encoder_is_loaded_by_its_own_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "test_retrieval_training_pipeline"
    monkeypatch.setitem(sys.modules, name, sys.modules[__name__])
    monkeypatch.setitem(EncoderKind.KINDS, "other", f"{name}:OtherSettings")  # type: ignore[index]
    monkeypatch.setattr(f"{name}.LOADED", [])
    few = ["training.steps=2", "index=null", "evaluation=null"]
    train_retriever(config(tmp_path), set_=few, out=tmp_path / "dense")
    start = f"encoder={{backbone: {tmp_path / 'dense' / 'encoder'}, settings: {{kind: other, heads: 2}}}}"
    train_retriever(tmp_path / "config.yaml", set_=[*few, start], out=tmp_path / "other")
    assert [(type(s).__name__, s.heads) for s in LOADED] == [("OtherSettings", 2)]
    saved = tmp_path / "dense" / "encoder" / "manifest.json"
    saved.write_text(saved.read_text().replace('"kind": "dense"', '"kind": "other"'))
    with pytest.raises(ConfigError, match="kind: Input should be 'dense', got 'other'"):
        open_encoder(saved.parent)  # by the other family, whose settings the dense one does not read
    assert LOADED[1:] == [saved.parent]
    with pytest.raises(ConfigError, match=r"unknown setting 'haeds' \(did you mean 'heads'"):
        load_retriever_run(tmp_path / "config.yaml", [start.replace("heads", "haeds")])


def test_an_index_made_before_serves_the_encoder_whose_query_tower_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "test_retrieval_training_pipeline", sys.modules[__name__])
    path = config(tmp_path)
    train_retriever(path)
    run = tmp_path / "run"
    training = "training={batch_size: 6, steps: 10, learning_rate: 1.0e-3, train: query, against: all}"
    start = "encoder={backbone: " + str(run / "encoder") + "}"
    vectors = f"training.index={run / 'index'}"
    train_retriever(path, set_=[training, vectors, start, "index=null", "evaluation=null"], out=tmp_path / "tuned")
    tuned = {"kind": "dense", "index": run / "index", "encoder": str(tmp_path / "tuned" / "encoder")}
    search = open_retriever(RetrieverSettings.model_validate(tuned)).search(["tell of coral"], 3)[0]
    before = open_retriever(run / "index").search(["tell of coral"], 3)[0]
    assert [hit.score for hit in search] != [hit.score for hit in before]
    assert search[0].passage.title == "Coral"
    train_retriever(path, set_=["training.steps=1", start, "index=null", "evaluation=null"], out=tmp_path / "both")
    other = tuned | {"encoder": str(tmp_path / "both" / "encoder")}
    with pytest.raises(ArtifactError):
        open_retriever(RetrieverSettings.model_validate(other))


def test_mining_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "test_retrieval_training_pipeline", sys.modules[__name__])
    mine(config(tmp_path), out=tmp_path / "mined.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "mined.jsonl").read_text().splitlines()]
    assert [p["docid"] for p in rows[0]["negative_passages"]] == ["p1", "p2"]
    assert not (tmp_path / "run").exists()


def test_a_reranker_learns_to_tell_golds_from_distractors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from retrieval.encoders.config import ScratchSettings
    from retrieval.encoders.scratch import make_backbone
    from retrieval.rerankers.scorer import CrossEncoderScorer

    monkeypatch.setitem(sys.modules, "test_retrieval_training_pipeline", sys.modules[__name__])
    texts = [f"{p.title} {p.text} tell of {word}" for p, word in zip(PASSAGES, WORDS, strict=True)]
    shape = ScratchSettings(vocabulary=120, hidden_size=32, layers=1, heads=2, dropout=0.0)
    make_backbone(tmp_path / "backbone", texts, shape)
    everything = {"kind": "test_retrieval_training_pipeline:Everything"}
    reranker = {"backbone": str(tmp_path / "backbone"), "steps": 10, "learning_rate": 1e-3, "save_steps": 5}
    path = config(
        tmp_path,
        kind="reranker",
        reranker=reranker | {"first_stage": everything},
        encoder=None,
        training={},
        index=None,
    )
    train_retriever(path)
    run = tmp_path / "run"
    scorer = CrossEncoderScorer(run / "reranker")
    assert len(scorer.score([("tell of coral", "Coral This is about coral."), ("tell of coral", "Heath.")])) == 2
    steps = [json.loads(line)["step"] for line in (run / "round-1" / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [0, 10]
    stage = json.loads((run / "stages" / "train-1.json").read_text())
    assert stage["first_stage"] == pytest.approx(1 / 12)  # recall@1 of what finds all, in one order
    assert stage["gain_over_first_stage"] == pytest.approx(stage["best"] - 1 / 12)
    assert "gain_low" in stage
    figures = (run / "reranker" / "manifest.json").stat().st_mtime_ns
    train_retriever(path, resume=True)
    assert (run / "reranker" / "manifest.json").stat().st_mtime_ns == figures


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("encoder={backbone: x}", "encoder does nothing for kind reranker"),
        ("training={steps: 3}", "training does nothing for kind reranker"),
        ("index={path: i, corpus: c}", "index does nothing for kind reranker"),
        ("evaluation={path: d, passages: 10}", "evaluation.passages does nothing for kind reranker"),
        ("evaluation={path: d, beside: [e]}", "evaluation.beside does nothing for kind reranker"),
        ("reranker.first_stage={index: i}", "first_stage, without evaluation, does nothing for kind reranker"),
        ("kind=encoder", "reranker does nothing for kind encoder"),
        ("reranker.loss=lamda", "unknown kind of reranker loss; did you mean 'lambda'"),
        ("reranker.loss={kind: kl, top: 3}", "top does nothing for a reranker loss of kind kl, only for lambda"),
        ("reranker.head={kind: label, template: qwen3}", "template does nothing .* kind label, only for yes_no"),
        ("reranker.max_token=3", "did you mean 'max_tokens'"),
        ("rounds=2", "rounds above 1 need an encoder"),
    ],
)
def test_what_does_nothing_for_a_reranker_is_refused(tmp_path: Path, override: str, named: str) -> None:
    path = config(tmp_path, kind="reranker", reranker={"backbone": "b"}, training={}, index=None, evaluation=None)
    alone = "encoder=null"
    load_retriever_run(path, [alone])
    with pytest.raises(ConfigError, match=named):
        load_retriever_run(path, [*([] if override == "kind=encoder" else [alone]), override])


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("kind=reranker", "needs a section 'reranker'"),
        ("encoder.backbone=x", "either backbone or scratch"),
        ("encoder.preset=drp", "did you mean 'dpr'"),
        ("training.preset=repllma", "did you mean 'repllama'"),
        ("training.against=all", "against does nothing for .* of kind in_batch, only for frozen_passages"),
        ("training.temprature=1", "did you mean 'temperature'"),
        ("training={train: query, lora: {}}", "lora does nothing for .* of kind frozen_passages, only for in_batch"),
        ("training={train: query, agianst: all}", "did you mean 'against'"),
        ("training.train=passage", "train is 'passage'"),
        ("training.train=[query]", "train is"),
        ("training.preset=[dpr]", "no training preset"),
        ("training={kind: in_batch, train: query}", "train: query stands for kind frozen_passages, not in_batch"),
        ("training.kind=in_bach", "unknown kind of training objective; did you mean 'in_batch'"),
        ("rounds=2", "round_corpus"),
        ("index.evaluate.every=10", "index.evaluate.every does nothing for kind encoder"),
        ("index.evaluate.passages=10", "index.evaluate.passages does nothing for kind encoder"),
        ("training.index=x", "index does nothing for .* of kind in_batch, only for frozen_passages"),
        ("encoder.settings={poling: cls}", r"encoder: unknown setting 'poling' \(did you mean 'pooling'"),
        ("encoder.settings={pooling: first}", "encoder: pooling: Input should be 'cls'"),
        ("encoder.settings={query_max_tokens: 1}", "encoder: query_max_tokens: Input should be greater"),
        ("encoder.settings={kind: dens}", "unknown kind of encoder"),
    ],
)
def test_bad_settings_are_one_clear_line(tmp_path: Path, override: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_retriever_run(config(tmp_path), [override])


def test_an_instruction_of_the_dev_set_that_the_encoder_has_no_place_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="query_prompt '' has no place for one"):
        train_retriever(config(tmp_path, mining=None), set_=["evaluation.instruction=Find it"])


def test_instructions_that_the_encoder_does_not_read_are_refused_before_mining(tmp_path: Path) -> None:
    path = config(tmp_path)
    with pytest.raises(ConfigError, match="query_prompt '' has no place for one"):
        train_retriever(path, set_=["data.0.instruction=Find it"])
    assert not list((tmp_path / "run").rglob("rows.jsonl"))


def test_counts_are_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    _print_figures(Path("run"), {"train-1": {"queries": 1_234_567, "best": 0.12345, "gain_method": "t"}})
    assert "train-1: queries 1,234,567  best 0.1235\n" in capsys.readouterr().err


def test_given_pieces_cut_words_where_they_say(tmp_path: Path) -> None:
    from retrieval.encoders.tokenizer import given_wordpiece

    path = tmp_path / "vocabulary.txt"
    path.write_text("Bux\n##tix\n##to\nwas\n.\n", encoding="utf-8")
    tokenizer = given_wordpiece(path, 16)
    assert tokenizer.tokenize("Buxtixto was buxzz.") == ["bux", "##tix", "##to", "was", "[UNK]", "."]
    assert tokenizer("was")["input_ids"][0] == tokenizer.cls_token_id
    with pytest.raises(DataError, match="cannot read"):
        given_wordpiece(tmp_path / "none.txt", 16)
    path.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="no word pieces"):
        given_wordpiece(path, 16)


def test_mining_alone_makes_the_made_up_world_that_its_rows_are_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "test_retrieval_training_pipeline", sys.modules[__name__])
    world = {"films": 60, "people": 60, "companies": 40, "cities": 40, "countries": 20, "train": 5, "dev": 5, "test": 5}
    path = config(tmp_path, world=world, data=[{"path": "{out}/world"}])
    for _ in range(2):
        mine(path, tmp_path / "mined.jsonl")
        assert len((tmp_path / "mined.jsonl").read_text().splitlines()) == 5
    assert (tmp_path / "run" / "stages" / "world.json").is_file()
