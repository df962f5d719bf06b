"""Rerankers learn: heads, adapters, dev set, exact resume, gradient caching, and a teacher's scores."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import make_decoder
from sentence_transformers import CrossEncoder

from retrieval.combine.rerank import RerankRetriever
from retrieval.passages import content_key, passage_text
from retrieval.rerankers.scorer import CrossEncoderScorer
from retrieval.training.config import DevSettings, SourceSettings
from retrieval.training.rerankers.config import RerankerSettings
from retrieval.training.rerankers.lists import ListSampler
from retrieval.training.rerankers.model import new_reranker
from retrieval.training.rerankers.objective import RankLists
from retrieval.training.rerankers.train import Watched, train_reranker
from retrieval.training.row import TrainingRow, passages_of
from retrieval.training.rows import load_rows, write_rows
from retrieval.training.teacher import with_scores
from sleuth.errors import ArtifactError, ConfigError, DataError
from sleuth.types import Passage

WORDS = ["amber", "birch", "coral", "delta", "ember", "fjord", "grove", "heath", "islet", "jetty", "knoll", "larch"]
GOLDS = [Passage(f"p{i}", word.capitalize(), f"This is about {word}.") for i, word in enumerate(WORDS)]
ROWS = [
    TrainingRow(f"q{i}", f"tell of {word}", (GOLDS[i],), tuple(GOLDS[i - n] for n in (1, 2, 3)))
    for i, word in enumerate(WORDS)
]
SURE = [Passage(f"s{i}", p.title, p.text.replace("is", "is surely")) for i, p in enumerate(GOLDS)]
EASY = [replace(row, positives=(SURE[i],)) for i, row in enumerate(ROWS)]
"""A gold is told by one word of its own, which a handful of steps can learn."""
TEXTS = [row.query for row in ROWS] + [passage_text(p) for p in passages_of([*ROWS, *EASY])]


class Figures:
    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.setdefault(step, {}).update(values)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_decoder(tmp_path_factory.mktemp("decoder") / "llama", TEXTS, attention_dropout=0.1)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from retrieval.encoders.config import ScratchSettings
    from retrieval.encoders.scratch import make_backbone

    folder = tmp_path_factory.mktemp("bert") / "b"
    make_backbone(folder, TEXTS, ScratchSettings(vocabulary=120, hidden_size=32, layers=1, heads=2, max_positions=64))
    return folder


def settings(backbone: Path, **changes: Any) -> RerankerSettings:
    yes_no = {"kind": "yes_no", "template": "plain", "instruction": "Find words"}
    basic: dict[str, Any] = {"backbone": str(backbone), "batch_size": 4, "hard_negatives": 2, "learning_rate": 2e-3}
    basic |= {"max_tokens": 64, "steps": 6, "log_steps": 1, "save_steps": 2, "warmup_steps": 1}
    if "llama" in str(backbone):
        basic["head"] = yes_no
    return RerankerSettings.model_validate(basic | changes)


def watched(folder: Path, rows: Sequence[TrainingRow] = ROWS, **changes: Any) -> Watched:
    path = folder / "dev.jsonl"
    write_rows(rows, path)

    @contextlib.contextmanager
    def counting(_title: str) -> Any:
        yield lambda _done, _total: None

    @contextlib.contextmanager
    def progress(_title: str) -> Any:
        yield None

    dev = DevSettings.model_validate({"path": str(path), "every": 2, "k": 1, "metric": "ndcg10"} | changes)
    return Watched(dev, folder / "dev-figures.jsonl", progress, counting)


def run(chosen: RerankerSettings, folder: Path, **how: Any) -> dict[str, Any]:
    sink, rows = how.pop("sink", Figures()), how.pop("rows", ROWS)
    return train_reranker(rows, chosen, folder / "model", folder / "work", seed=0, sink=sink, **how)


@pytest.mark.parametrize("loss", ["listnet", "lambda", "contrastive"])
def test_a_decoder_learns_and_scores_alike_in_plain_sentence_transformers(
    decoder: Path, tmp_path: Path, loss: str
) -> None:
    chosen = settings(decoder, loss=loss, steps=8, learning_rate=5e-3)
    made = run(chosen, tmp_path, rows=EASY, watched=watched(tmp_path, EASY, every=4))
    assert made["start"] < 0.9
    assert made["best"] == 1.0
    assert made["gain"] == pytest.approx(made["best"] - made["start"])
    assert made["gain_low"] <= made["gain"] <= made["gain_high"]
    pairs = [(row.query, passage_text(p)) for row in ROWS[:3] for p in row.negatives]
    ours = CrossEncoderScorer(tmp_path / "model").score(pairs)
    plain = CrossEncoder(str(tmp_path / "model"))
    assert plain.prompts["instruction"] == "Find words"
    assert ours == pytest.approx(plain.predict(pairs, activation_fn=torch.nn.Identity()).tolist(), abs=1e-5)
    on = new_reranker(RerankerSettings(backbone=str(tmp_path / "model"), max_tokens=64), seed=0)  # asked as before
    with torch.no_grad():
        assert on.scores(on.features(pairs)).tolist() == pytest.approx(ours, abs=1e-5)


def test_an_adapter_alone_is_trained_and_merged_into_what_is_saved(decoder: Path, tmp_path: Path) -> None:
    chosen = settings(decoder, lora={"r": 4, "alpha": 8}, loss="listnet", learning_rate=1e-2)
    start = new_reranker(chosen, seed=0)
    trained = {name for name, weight in start.model.named_parameters() if weight.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    made = run(chosen, tmp_path, rows=EASY, watched=watched(tmp_path, EASY, every=3))
    assert made["best"] > made["start"]
    assert not list((tmp_path / "model").glob("adapter*"))
    plain = CrossEncoder(str(tmp_path / "model"))
    untouched = {name: w for name, w in CrossEncoder(str(decoder)).state_dict().items() if "norm" in name}
    assert all(torch.equal(plain.state_dict()[name], weight) for name, weight in untouched.items())
    ranked = CrossEncoderScorer(tmp_path / "model")
    pairs = [[(r.query, passage_text(p)) for p in (*r.negatives, *r.positives)] for r in EASY]
    best = [max(range(4), key=ranked.score(some).__getitem__) for some in pairs]
    recorded = [json.loads(line) for line in (tmp_path / "dev-figures.jsonl").read_text().splitlines()]
    kept = next(one for one in recorded if one["step"] == made["best_step"])
    assert [float(place == 3) for place in best] == kept["recall"]


def test_the_head_of_a_label_is_trained_beside_its_adapter(bert: Path, tmp_path: Path) -> None:
    chosen = settings(bert, lora={"r": 4, "alpha": 8})
    start = new_reranker(chosen, seed=0)
    trained = {name for name, weight in start.model.named_parameters() if weight.requires_grad}
    assert any("classifier" in name for name in trained)
    assert all("lora_" in name or "classifier" in name for name in trained)
    run(chosen, tmp_path)
    assert len(CrossEncoder(str(tmp_path / "model")).predict([("tell of amber", "Amber")])) == 1


@pytest.mark.parametrize("which", ["decoder", "bert"])
def test_a_killed_and_resumed_run_ends_with_the_same_bits(
    which: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(request.getfixturevalue(which), loss="listnet", micro_batch=5)
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    expected = run(chosen, tmp_path / "whole", watched=watched(tmp_path / "whole"))
    original = RankLists.backward

    def dies(self: RankLists, reranker: Any, step: int) -> dict[str, float]:
        if step == 5:
            raise KeyboardInterrupt
        return original(self, reranker, step)

    monkeypatch.setattr(RankLists, "backward", dies)
    with pytest.raises(KeyboardInterrupt):
        run(chosen, tmp_path / "broken", watched=watched(tmp_path / "broken"))
    monkeypatch.undo()
    torch.manual_seed(99)
    found = run(chosen, tmp_path / "broken", watched=watched(tmp_path / "broken"), resume=True)
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}
    whole, resumed = (CrossEncoder(str(tmp_path / name / "model")).state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
    ended = [torch.load(tmp_path / name / "work" / "checkpoint-6" / "weights.pt") for name in ("whole", "broken")]
    assert all(torch.equal(weight, ended[1][name]) for name, weight in ended[0].items())


def test_a_checkpoint_of_another_loop_is_one_clear_line(bert: Path, tmp_path: Path) -> None:
    from sleuth.checkpoints import mark_complete

    (tmp_path / "work" / "checkpoint-4").mkdir(parents=True)
    mark_complete(tmp_path / "work" / "checkpoint-4")
    with pytest.raises(ArtifactError, match="earlier version of the training loop"):
        run(settings(bert), tmp_path, resume=True)


@pytest.mark.parametrize("loss", ["bce", "lambda", "contrastive"])
def test_pairs_read_in_parts_give_the_gradients_of_one_pass(bert: Path, loss: str) -> None:
    found = []
    for micro_batch in (None, 3):
        chosen = settings(bert, loss=loss, micro_batch=micro_batch)
        reranker = new_reranker(chosen, seed=0)
        reranker.model.eval()  # no dropout
        reranker.model.double()
        figures = RankLists(ROWS, chosen, 0).backward(reranker, 0)
        found.append((figures, {n: w.grad for n, w in reranker.model.named_parameters() if w.grad is not None}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-3, atol=1e-6)


def test_training_stops_early_and_keeps_the_best(bert: Path, tmp_path: Path) -> None:
    """A learning rate that does nothing: no evaluation is better than the first."""
    made = run(settings(bert, learning_rate=1e-12, steps=20), tmp_path, watched=watched(tmp_path, patience=2))
    assert (made["best_step"], made["steps"], made["gain"]) == (0, 4, 0.0)


def test_hits_of_a_first_stage_are_ranked_again(bert: Path, tmp_path: Path) -> None:
    """It finds the gold of no query but three, and puts it last."""

    class_path = "test_retrieval_reranker_training:FirstStage"
    chosen = settings(bert, steps=2, first_stage={"kind": class_path}, depth=4)
    made = run(chosen, tmp_path, watched=watched(tmp_path, metric="ndcg10"))
    assert made["first_stage"] == pytest.approx(sum(1 / torch.log2(torch.tensor(n + 1.0)) for n in range(1, 5)) / 12)
    assert made["gain_over_first_stage"] == pytest.approx(made["best"] - made["first_stage"])


class FirstStage:
    fingerprint = "first"

    def search(self, queries: Any, k: int) -> Any:
        from sleuth.types import Hit

        return [[Hit(p, -float(n), n) for n, p in enumerate(GOLDS[:k], start=1)] for _ in queries]


def scored(rows: list[TrainingRow]) -> list[TrainingRow]:
    class Overlap:
        fingerprint = "overlap"

        def score(self, pairs: Any) -> list[float]:
            return [10.0 * (query.split()[-1] in text.lower()) - len(text) / 10 for query, text in pairs]

    teacher = RerankRetriever(FirstStage(), Overlap())
    return with_scores(rows, teacher, depth=5)[0]


def test_rows_carry_a_teachers_scores_to_a_reranker(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="learns from a teacher's scores, and no row carries any"):
        run(settings(bert, loss="kl"), tmp_path)
    write_rows(scored(ROWS), tmp_path / "scored.jsonl")
    rows = load_rows([SourceSettings(path=str(tmp_path / "scored.jsonl"))])
    assert rows == scored(ROWS)
    (one,) = ListSampler(rows, settings(bert, loss="kl").loss, 1, 2, 0).lists(0)
    row = next(row for row in rows if row.query == one.query)
    known = {passage_text(p): row.scores[content_key(p)] for p in (*row.positives, *row.negatives)}
    assert one.labels == tuple(known[text] for text in one.passages)
    assert len(set(one.labels)) > 1
    for loss in ("kl", "mse", "margin_mse", {"kind": "listnet", "target": "teacher"}):
        figures = Figures()
        chosen = settings(bert, loss=loss, steps=15, learning_rate=5e-3)
        train_reranker(rows, chosen, tmp_path / "m", tmp_path / "w", seed=0, sink=figures)
        assert figures.rows[15]["loss"] < figures.rows[1]["loss"]


def test_lists_hold_no_gold_as_a_negative() -> None:
    twice = [*ROWS, TrainingRow("again", ROWS[0].query, (GOLDS[-1],), (GOLDS[0], GOLDS[5]))]
    chosen = RerankerSettings.model_validate({"backbone": "b", "loss": {"kind": "contrastive", "in_batch": 20}})
    for one in ListSampler(twice, chosen.loss, 13, 7, 0).lists(0):
        golds = {passage_text(p) for row in twice if row.query == one.query for p in row.positives}
        assert one.passages[0] in golds
        assert not golds & set(one.passages[1:])
        assert len(set(one.passages)) == len(one.passages)
    listed = RerankerSettings.model_validate({"backbone": "b", "loss": "listnet"})
    first, again = (ListSampler(twice, listed.loss, 4, 2, 0).lists(n) for n in (0, 4))
    assert first != again
    assert first == ListSampler(twice, listed.loss, 4, 2, 0).lists(0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"head": "label"}, "head label would drop the vocabulary"),
        ({"lora": {"target_modules": ["q_prj"]}}, "did you mean 'q_proj'"),
        ({"loss": "listnett"}, "did you mean 'listnet'"),
        (
            {"loss": {"kind": "listnet", "top": 3}},
            "top does nothing for .* of kind listnet, only for lambda",
        ),
        ({"head": {"kind": "label", "template": "plain"}}, "template does nothing for a reranker head of kind label"),
    ],
)
def test_settings_that_do_nothing_are_refused(decoder: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=said):
        new_reranker(settings(decoder, **changes), seed=0)


def test_a_masked_model_cannot_answer_yes(bert: Path) -> None:
    with pytest.raises(ConfigError, match=r"template does nothing for .*, which is no language model"):
        new_reranker(settings(bert, head="yes_no"), seed=0)


def test_a_source_of_which_no_row_is_drawn_is_named(decoder: Path, caplog: pytest.LogCaptureFixture) -> None:
    mixed = [replace(row, source="ab"[i % 2], share=(1.0, 0.01)[i % 2]) for i, row in enumerate(ROWS)]
    settings = RerankerSettings(backbone=str(decoder), batch_size=4, steps=3)
    RankLists(mixed, settings, 0)
    assert "no row of source b is drawn in 3 steps" in caplog.text
