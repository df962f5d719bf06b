"""Rows with a teacher's scores: read, written, made by any retriever or reranker, and learnt from by the command."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from families import instructable, masked_lm, rows
from test_retrieval_training_pipeline import Everything, config
from test_retrieval_training_run import settings

from cli.train_retriever import mine, train_retriever
from retrieval.combine.rerank import RerankRetriever
from retrieval.dense.retriever import build_dense, open_dense
from retrieval.encoders.encoder import Encoder
from retrieval.passages import content_key, passage_text
from retrieval.training.config import SourceSettings
from retrieval.training.instructions import search_each
from retrieval.training.mining_config import MiningSettings
from retrieval.training.row import TrainingRow, passages_of
from retrieval.training.rows import load_rows, write_rows
from retrieval.training.start import Material, start
from retrieval.training.teacher import with_scores
from sleuth.errors import ConfigError, DataError
from sleuth.types import Hit, Passage

GOLD, OTHER = Passage("g", "Gold", "It is it."), Passage("n", "Other", "It is not.")


def test_scores_instructions_and_sources_are_read_back_as_written(tmp_path: Path) -> None:
    scores = {content_key(GOLD): 2.5, content_key(OTHER): -1.0}
    row = TrainingRow("1", "what?", (GOLD,), (OTHER,), ("it",), "Find it", scores, "set")
    write_rows([row, TrainingRow("2", "who?", (GOLD,))], tmp_path / "rows.jsonl")
    assert load_rows([SourceSettings(path=str(tmp_path / "rows.jsonl"))]) == [row, TrainingRow("2", "who?", (GOLD,))]
    told = SourceSettings(path=str(tmp_path / "rows.jsonl"), instruction="Find anything")
    first, second, third, fourth = load_rows([told, SourceSettings(path=str(tmp_path / "rows.jsonl"))])
    assert [first.instruction, second.instruction, third.instruction] == ["Find it", "Find anything", "Find it"]
    assert [first.source, second.source, third.source, fourth.source] == ["0/set", "0", "1/set", "1"]


def test_scores_stay_with_passages_that_take_the_ids_of_a_corpus(tmp_path: Path) -> None:
    loose = Passage("", GOLD.title, f"{GOLD.text} ")
    write_rows([TrainingRow("1", "what?", (loose,), (), (), "", {content_key(loose): 3.0})], tmp_path / "rows.jsonl")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"_id": "g", "title": GOLD.title, "text": GOLD.text}) + "\n")
    (row,) = load_rows([SourceSettings(path=str(tmp_path / "rows.jsonl"), corpus=str(corpus))])
    assert (row.positives, row.scores) == ((GOLD,), {content_key(GOLD): 3.0})


@pytest.mark.parametrize("score", ["high", True, float("nan")])
def test_a_score_that_is_no_number_is_named(tmp_path: Path, score: Any) -> None:
    good, bad = ({"docid": "g", "text": "It is it.", "score": value} for value in (1, score))
    lines = [json.dumps({"query": "what?", "positive_passages": [p]}) for p in (good, bad)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"rows.jsonl.*2.*score of 'positive_passages\[0\]' is not a finite number"):
        load_rows([SourceSettings(path=str(tmp_path / "rows.jsonl"))])


class Lengths:
    """Scores a pair by its length."""

    fingerprint = "lengths"

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        return [float(len(query) + len(text)) for query, text in pairs]


class Some:
    """Finds every second passage, best first."""

    fingerprint = "some"

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        found = [passages_of(rows())[::2][:k] for _ in queries]
        return [[Hit(p, 1.0 - i / 10, i + 1) for i, p in enumerate(some)] for some in found]


def test_a_reranker_scores_every_passage_and_a_search_those_it_finds() -> None:
    read, report = with_scores(rows(), RerankRetriever(Some(), Lengths()), depth=3, batch_size=5)
    assert (report.scored, report.unscored) == (24, 0)
    assert all(row.scores[content_key(p)] == len(row.query + passage_text(p)) for row in read for p in row.positives)
    found, report = with_scores(rows(), Some(), depth=3)
    assert (report.scored, report.unscored, str(report)) == (
        3,
        21,
        "the teacher scored 3 passages, and did not find 21",
    )
    assert [len(row.scores) for row in found[:4]] == [1, 1, 1, 0]
    assert found[1].scores == {content_key(rows()[1].positives[0]): pytest.approx(0.9)}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    made = instructable(masked_lm(tmp_path_factory.mktemp("b") / "b"))
    made.save(tmp_path_factory.mktemp("e") / "e")
    return made


def test_an_encoder_compares_every_pair_with_the_rows_own_instruction(encoder: Encoder, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"_id": p.id, "title": p.title, "text": p.text}) for p in passages_of(rows())]
    corpus.write_text("\n".join(lines) + "\n")
    build_dense(str(corpus), tmp_path / "index", encoder)
    retriever = open_dense(tmp_path / "index", encoder)
    told = [
        TrainingRow(r.id, r.query, r.positives, r.negatives, instruction="Guess" * (i % 2))
        for i, r in enumerate(rows())
    ]
    taught, report = with_scores(told, retriever, depth=1)
    assert (report.scored, report.unscored) == (24, 0)
    everything = search_each(retriever, told, 24)
    for row, hits in zip(taught, everything, strict=True):
        found = {content_key(hit.passage): hit.score for hit in hits}
        assert row.scores == {key: pytest.approx(found[key], abs=1e-5) for key in row.scores}
    plain = retriever.search([row.query for row in told], 24)
    same = [a[0].score == pytest.approx(b[0].score, abs=1e-6) for a, b in zip(everything, plain, strict=True)]
    assert same == [True, False] * 6


def test_distillation_without_scores_and_instructions_without_a_place_are_refused(encoder: Encoder) -> None:
    def begin(data: list[TrainingRow], **changes: Any) -> None:
        start(settings(**changes), Material(encoder, data, [], 0, lambda _title: nullcontext(lambda _a, _b: None)))

    with pytest.raises(DataError, match=r"no row has one beside its negatives.*mining.teacher"):
        begin(rows(), distillation={})
    told = [TrainingRow("1", "what?", (GOLD,), (OTHER,), instruction="Find it")]
    begin(told)
    encoder.settings, own = encoder.settings.model_copy(update={"query_prompt": "query: "}), encoder.settings
    try:
        with pytest.raises(ConfigError, match=r"query_prompt 'query: ' has no place for one"):
            begin(told)
    finally:
        encoder.settings = own


def test_a_model_alone_stands_for_a_reranker_of_the_retriever() -> None:
    chosen = MiningSettings.model_validate({"retriever": "runs/bm25", "teacher": {"model": "runs/ce"}})
    assert chosen.teacher is not None
    saved = chosen.teacher.model_dump(mode="json")
    assert (saved["kind"], saved["model"], saved["inner"]["index"]) == ("rerank", "runs/ce", "runs/bm25")
    again = MiningSettings.model_validate(chosen.model_dump(mode="json"))
    assert again.teacher == chosen.teacher


class Knowing(Everything):
    """As `Everything`, for a teacher: golds far above all others."""

    fingerprint = "knowing"

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        found = []
        for query, hits in zip(queries, super().search(queries, k), strict=True):
            right = lambda hit, query=query: hit.passage.title.lower() in query
            found.append([Hit(h.passage, 5.0 if right(h) else 0.1 * h.score, h.rank) for h in hits])
        return found


def test_the_command_mines_scores_and_learns_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "test_retrieval_training_teacher", sys.modules[__name__])
    kind = "test_retrieval_training_teacher:"
    mining = {"retriever": {"kind": f"{kind}Everything"}, "last_rank": 4, "teacher": {"kind": f"{kind}Knowing"}}
    training = {"batch_size": 6, "steps": 30, "learning_rate": 5e-3, "log_steps": 10, "hard_negatives": 3}
    training["distillation"] = {"kl": 1.0, "margin_mse": 0.1, "contrastive": 0.0}
    path = config(tmp_path, mining=mining, training=training, evaluation=None, index=None)
    mine(path, tmp_path / "rows.jsonl")
    assert "56 passages scored" in capsys.readouterr().err
    row = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[2])
    assert [p["score"] for p in row["positive_passages"]] == [5.0]
    assert [p["score"] for p in row["negative_passages"]] == pytest.approx([-0.0, -0.1, -0.3])
    train_retriever(path)
    measured = [json.loads(line) for line in (tmp_path / "run/round-1/metrics.jsonl").read_text().splitlines()]
    for name in ("kl", "margin_mse"):
        values = [row[name] for row in measured if name in row]
        assert len(values) == 3 and 0 < values[-1] < 0.3 * values[0]
