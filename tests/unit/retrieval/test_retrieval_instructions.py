"""Instructions of rows reach every model that reads any: rerankers, teachers, parts of hybrids, dev sets, labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import make_decoder
from families import Exact, instructable, masked_lm, rows
from sentence_transformers import CrossEncoder

from retrieval.combine.hybrid import HybridRetriever
from retrieval.combine.rerank import RerankRetriever
from retrieval.encoders.retriever import EncoderRetriever
from retrieval.passages import content_key, passage_text
from retrieval.rerankers.scorer import CrossEncoderScorer, MeanScorer
from retrieval.resilient import ResilientRetriever
from retrieval.training.augmentation import augment
from retrieval.training.augmentation_config import AugmentationSettings
from retrieval.training.config import DevSettings
from retrieval.training.instructions import instructed, reads_instructions, say_unread, search_each
from retrieval.training.labels import asked, label, rankings
from retrieval.training.rerankers.config import RerankerSettings
from retrieval.training.rerankers.dev import Candidates, load_candidates
from retrieval.training.rerankers.model import check_instructions, new_reranker
from retrieval.training.rerankers.objective import RankLists
from retrieval.training.row import TrainingRow, passages_of
from retrieval.training.rows import write_rows
from retrieval.training.teacher import with_scores
from sleuth.errors import ConfigError
from sleuth.types import Hit, Passage

OWN = "Find words"
TOLD = [replace(row, instruction=["", "Find who knows", "Find a hill"][i % 3]) for i, row in enumerate(rows()[:6])]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [row.query for row in rows()] + [passage_text(p) for p in passages_of(rows())]
    return make_decoder(tmp_path_factory.mktemp("d") / "llama", texts)


@pytest.fixture(scope="module")
def saved(decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("r") / "saved"
    new_reranker(settings(decoder), seed=0).save(folder, {})
    return folder


def settings(decoder: Path, **changes: Any) -> RerankerSettings:
    head = {"kind": "yes_no", "template": "plain", "instruction": OWN}
    basic = {"backbone": str(decoder), "head": head, "loss": "listnet", "batch_size": 3, "hard_negatives": 1}
    return RerankerSettings.model_validate(basic | {"max_tokens": 96} | changes)


def by_the_library(saved: Path, pairs: Sequence[tuple[str, str]], instruction: str) -> list[float]:
    model = CrossEncoder(str(saved))
    scores = model.predict(list(pairs), prompt=instruction or OWN, activation_fn=torch.nn.Identity())
    return [float(score) for score in scores]


def test_a_reranker_as_teacher_reads_the_instruction_of_each_row(saved: Path) -> None:
    scorer = CrossEncoderScorer(saved)
    taught, _ = with_scores(TOLD, RerankRetriever(Fixed(), scorer), depth=1, batch_size=4)
    for row in taught:
        own = passages_of([row])
        wanted = by_the_library(saved, [(row.query, passage_text(p)) for p in own], row.instruction)
        assert [row.scores[content_key(p)] for p in own] == pytest.approx(wanted, abs=1e-5)
    bare, _ = with_scores([replace(row, instruction="") for row in TOLD], RerankRetriever(Fixed(), scorer), depth=1)
    moved = [
        max(abs(a.scores[key] - b.scores[key]) for key in a.scores) > 1e-3 for a, b in zip(taught, bare, strict=True)
    ]
    assert moved == [False, True, True] * 2


def test_several_rerankers_are_told_too(saved: Path) -> None:
    scorer = CrossEncoderScorer(saved)
    pairs = [(row.query, passage_text(row.positives[0])) for row in TOLD]
    told = [row.instruction for row in TOLD]
    mean = MeanScorer([scorer, Fixed(), scorer])
    assert mean.takes_instructions and not MeanScorer([Fixed()]).takes_instructions
    wanted = [(2 * one + 1.0) / 3 for one in scorer.score(pairs, told)]
    assert mean.score(pairs, told) == pytest.approx(wanted, abs=1e-6)


class Fixed:
    """Finds the same passages for every query, and gives each pair the same score."""

    fingerprint = "fixed"

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [[Hit(p, 1.0 / (n + 1), n + 1) for n, p in enumerate(passages_of(rows())[:k])] for _ in queries]

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        return [1.0] * len(pairs)


class Whole:
    """An index of all passages that are given, for an `EncoderRetriever`."""

    def __init__(self, encoded: Any, family: Any) -> None:
        self.encoded, self.family = encoded, family

    def __len__(self) -> int:
        return len(self.encoded)

    def search(self, queries: Any, k: int) -> Any:
        scores, places = self.family.scores(queries, self.encoded).topk(k)
        return scores.numpy(), places.numpy()


def test_models_inside_other_retrievers_read_the_instruction(saved: Path, tmp_path: Path) -> None:
    encoder = instructable(masked_lm(tmp_path / "b"))
    passages = passages_of(rows())
    dense = EncoderRetriever(encoder, Whole(encoder.encode_passages(passages), encoder.family), passages, "w", "w")
    scorer = CrossEncoderScorer(saved)
    inner = ResilientRetriever(HybridRetriever([Fixed(), dense], depth=24), retries=0)
    whole = RerankRetriever(inner, scorer, depth=3)
    assert reads_instructions(whole) and reads_instructions(inner) and not reads_instructions(Fixed())
    found = search_each(whole, TOLD, 3)
    for row, hits in zip(TOLD, found, strict=True):
        part = Exact(instructed(encoder, row.instruction), passages)
        best = HybridRetriever([Fixed(), part], depth=24).search([row.query], 3)[0]
        assert {hit.passage.id for hit in hits} == {hit.passage.id for hit in best}
        wanted = by_the_library(saved, [(row.query, passage_text(hit.passage)) for hit in hits], row.instruction)
        assert [hit.score for hit in hits] == pytest.approx(wanted, abs=1e-5)
    again = whole.search([row.query for row in TOLD], 3)  # nothing of it stays
    for hits, before in zip(again[::3], found[::3], strict=True):
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in before], abs=1e-5)


def test_a_step_of_a_reranker_reads_the_instructions(decoder: Path, saved: Path) -> None:
    reranker = new_reranker(settings(decoder), seed=0)
    losses, gradients = [], []
    for micro_batch in (None, 2):
        objective = RankLists(TOLD, settings(decoder, micro_batch=micro_batch), 0)
        reranker.model.zero_grad()
        losses.append(objective.backward(reranker, 0)["loss"])
        gradients.append(torch.cat([w.grad.flatten() for w in reranker.model.parameters() if w.grad is not None]))
    lists = objective.sampler.lists(0)
    assert {one.instruction for one in lists} > {""}
    scores = [by_the_library(saved, [(one.query, text) for text in one.passages], one.instruction) for one in lists]
    right = torch.tensor([1.0, 0.0]).softmax(0)  # ListNet
    wanted = torch.stack([-(right * torch.tensor(some).log_softmax(0)).sum() for some in scores]).mean()
    assert losses == pytest.approx([float(wanted)] * 2, abs=1e-4)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-3)


def test_rerankers_that_read_none_or_have_no_room_refuse_rows_with_instructions(decoder: Path, tmp_path: Path) -> None:
    label_head = new_reranker(RerankerSettings(backbone=str(masked_lm(tmp_path / "b"))), seed=0)
    check_instructions(rows(), label_head, "b")
    with pytest.raises(ConfigError, match="b has a classification head, which reads none"):
        check_instructions(TOLD, label_head, "b")
    long = [replace(TOLD[0], instruction="Find " + "anything " * 60)]
    asked_model = new_reranker(settings(decoder), seed=0)
    check_instructions(TOLD, asked_model, "llama")
    with pytest.raises(ConfigError, match="max_tokens 96 leaves no room: the template of llama with its instruction"):
        check_instructions(long, asked_model, "llama")
    with pytest.raises(ConfigError, match="leaves no room"):
        CrossEncoderScorer(decoder, template="plain", max_tokens=64, instruction="anything " * 60)


def test_the_dev_set_of_a_reranker_has_its_instruction(decoder: Path, tmp_path: Path) -> None:
    path = tmp_path / "dev.jsonl"
    write_rows(rows()[:3], path)

    class Heard(Fixed):
        takes_instructions = True
        heard: list[str] = []  # noqa: RUF012

        def score(self, pairs: Sequence[tuple[str, str]], instructions: Sequence[str] = ()) -> list[float]:
            self.heard += instructions
            return [1.0] * len(pairs)

    dev = DevSettings(path=str(path), instruction="Find a hill")
    found: Candidates = load_candidates(dev, settings(decoder), lambda _title: nullcontext())
    found.per_query(Heard(), 1, lambda _done, _total: None)
    assert Heard.heard == ["Find a hill"] * 6


def test_teachers_of_a_student_are_asked_with_the_instruction(tmp_path: Path) -> None:
    encoder = instructable(masked_lm(tmp_path / "b"))
    passages = passages_of(rows())
    dense = EncoderRetriever(encoder, Whole(encoder.encode_passages(passages), encoder.family), passages, "w", "w")
    once, twice = replace(TOLD[1], id="x"), replace(TOLD[1], id="y", instruction="", source="set")
    told = [once, twice]
    path = tmp_path / "labels.jsonl"
    made = label(
        told, dense, path, name="w", hits=4, batch_size=2, check=lambda _f: None, on_progress=lambda _d, _t: None
    )
    found = rankings(path, map(asked, told))
    wanted = search_each(dense, told, 4)
    assert (made, len(found)) == (2, 2)
    assert [found[asked(row)] for row in told] == [tuple(hit.passage.id for hit in hits) for hits in wanted]
    corpus = tmp_path / "corpus.jsonl"
    write_passages(corpus, passages)
    chosen = AugmentationSettings.model_validate(
        {"teachers": [{"kind": "m:T"}], "corpus": str(corpus), "positive_ranks": 1, "negative_ranks": [2, 4]}
    )
    first, second = augment(told, [found], chosen)
    assert (first.instruction, second.instruction, second.source) == (once.instruction, "", "set")


def write_passages(path: Path, passages: Sequence[Passage]) -> None:
    lines = [json.dumps({"_id": p.id, "title": p.title, "text": p.text}) for p in passages]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_it_is_said_where_instructions_are_not_read(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="sleuth.train_retriever")
    say_unread(rows(), Fixed(), "bm25")
    say_unread([TrainingRow("1", "what?", (), instruction="Find it")], Fixed(), "bm25")
    assert [record.getMessage() for record in caplog.records] == [
        "bm25 reads no instructions: those of 1 rows do not count there"
    ]
