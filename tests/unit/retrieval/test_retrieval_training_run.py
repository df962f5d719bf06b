"""The training loop on tiny backbones: resume to the bit, one tower alone, presets, dev figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hub.config import LoraSettings
from retrieval.encoders.config import DenseEncoderSettings, ScratchSettings, preset
from retrieval.encoders.encoder import Encoder, separate_towers
from retrieval.encoders.loading import load_encoder, new_encoder
from retrieval.encoders.scratch import make_backbone
from retrieval.passages import passage_text
from retrieval.training.config import DevSettings, SourceSettings, TrainingSettings
from retrieval.training.dev import DevSet, judge_all, load_dev, means
from retrieval.training.frozen import Table
from retrieval.training.objective import AgainstTable, InBatch, Objective
from retrieval.training.row import TrainingRow, passages_of
from retrieval.training.rows import load_rows, write_rows
from retrieval.training.start import Material, start
from retrieval.training.trainer import Outcome, Watch, add_adapter, freeze_passages, train, trainable
from sleuth.errors import TrainingError
from sleuth.types import Passage

WORDS = [
    "amber",
    "birch",
    "coral",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heath",
    "islet",
    "jetty",
    "knoll",
    "larch",
    "marsh",
    "north",
    "ocean",
    "pearl",
]


def rows() -> list[TrainingRow]:
    """Which passage is meant is told by one word that query and passage share."""
    golds = [Passage(f"p{i}", word.capitalize(), f"This is about {word}.") for i, word in enumerate(WORDS)]
    return [
        TrainingRow(f"q{i}", f"tell of {word}", (golds[i],), (golds[i - 1], golds[i - 2], golds[i - 3]))
        for i, word in enumerate(WORDS)
    ]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return backbone(tmp_path_factory.mktemp("bert") / "b", "bert")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return backbone(tmp_path_factory.mktemp("llama") / "b", "llama")


def backbone(folder: Path, family: Any, dropout: float = 0.1) -> Path:
    texts = [row.query for row in rows()] + [passage_text(p) for p in passages_of(rows())]
    size = {"vocabulary": 120, "hidden_size": 32, "layers": 2, "heads": 2, "max_positions": 256}
    shape = ScratchSettings.model_validate({"family": family, "dropout": dropout} | size)
    make_backbone(folder, texts, shape)
    return folder


class Figures:
    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.setdefault(step, {}).update(values)

    def close(self) -> None:
        pass


def plain(folder: Path, **changes: Any) -> Encoder:
    settings = {"pooling": "mean", "similarity": "cosine", "query_max_tokens": 16, "passage_max_tokens": 24}
    return new_encoder(DenseEncoderSettings(backbone=str(folder), **settings | changes))


def settings(**changes: Any) -> TrainingSettings:
    basic: dict[str, Any] = {"batch_size": 8, "hard_negatives": 1, "steps": 6, "learning_rate": 2e-3, "save_steps": 2}
    return TrainingSettings.model_validate(basic | {"log_steps": 1, "micro_batch": 4} | changes)


def weights(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in encoder.model.state_dict().items()}


def run(encoder: Encoder, chosen: TrainingSettings, out: Path, **options: Any) -> Outcome:
    return train(encoder, InBatch(rows(), chosen, 0), chosen, out, seed=0, sink=Figures(), **options)


class Killed(Exception):  # noqa: N818
    pass


class DiesAt:
    """An objective whose process is killed in the middle of a step."""

    def __init__(self, inner: Objective, step: int) -> None:
        self._inner, self._step = inner, step

    def steps(self, epochs: float) -> int:
        return self._inner.steps(epochs)

    def backward(self, encoder: Encoder, step: int) -> dict[str, float]:
        if step == self._step:
            raise Killed
        return self._inner.backward(encoder, step)


def watch(every: int = 2, patience: int = 0) -> Watch:
    devset = DevSet(rows(), passages_of(rows()))
    return Watch(lambda encoder, _step: means(devset.per_query(encoder, 1)), "recall", every, patience)


def test_a_killed_and_resumed_run_ends_with_the_same_bits(bert: Path, tmp_path: Path) -> None:
    chosen = settings()
    whole = plain(bert)
    expected = run(whole, chosen, tmp_path / "whole", watch=watch())
    first = plain(bert)
    dying = DiesAt(InBatch(rows(), chosen, 0), 5)
    with pytest.raises(Killed):
        train(first, dying, chosen, tmp_path / "broken", seed=0, sink=Figures(), watch=watch())
    (tmp_path / "broken" / "checkpoint-5").mkdir()  # half written: it has no mark
    torch.manual_seed(99)
    second = plain(bert)
    found = run(second, chosen, tmp_path / "broken", watch=watch(), resume=True)
    assert (found.best_step, found.best, found.last_step) == (expected.best_step, expected.best, expected.last_step)
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(second)[name]), name
    assert not torch.equal(next(iter(weights(plain(bert)).values())), next(iter(weights(second).values())))


def test_every_trainable_weight_moves_and_the_loss_falls(bert: Path, tmp_path: Path) -> None:
    encoder, figures = plain(bert, pooling="cls"), Figures()
    before = {name: weight.detach().clone() for name, weight in trainable(encoder).items()}
    chosen = settings(steps=30)
    train(encoder, InBatch(rows(), chosen, 0), chosen, tmp_path / "c", seed=0, sink=figures)
    still = [name for name, weight in trainable(encoder).items() if torch.equal(weight, before[name])]
    assert not still
    assert figures.rows[30]["loss"] < 0.9 * figures.rows[1]["loss"]


def test_the_best_checkpoint_is_kept_and_training_stops_early(bert: Path, tmp_path: Path) -> None:
    encoder = plain(bert)
    figures = iter([0.1, 0.5, 0.3, 0.2, 0.1, 0.0])
    told = Watch(lambda _encoder, _step: {"recall": next(figures)}, "recall", 1, patience=2)
    outcome = run(encoder, settings(keep_checkpoints=1), tmp_path / "c", watch=told)
    assert (outcome.best_step, outcome.best, outcome.last_step) == (1, 0.5, 3)
    saved = torch.load(tmp_path / "c" / "checkpoint-1" / "weights.pt", weights_only=True)
    assert all(torch.equal(weight, saved[name]) for name, weight in trainable(encoder).items())


def test_the_query_tower_alone_leaves_passages_and_their_index_as_they_are(bert: Path, tmp_path: Path) -> None:
    encoder = separate_towers(plain(bert))
    freeze_passages(encoder)
    texts = [passage_text(p) for p in passages_of(rows())]
    table, mark = encoder.encode(texts, "passage"), encoder.tower_fingerprint("passage")
    queries = encoder.encode(["tell of amber"], "query")
    for against in ("all", "batch"):
        chosen = settings(train="query", against=against)
        frozen = Table(passages_of(rows()), encoder.encode_texts(texts, "passage"))
        objective = AgainstTable(rows(), frozen, chosen, 0)
        train(encoder, objective, chosen, tmp_path / against, seed=0, sink=Figures())
        assert np.array_equal(encoder.encode(texts, "passage"), table)
        assert encoder.tower_fingerprint("passage") == mark
        moved = encoder.encode(["tell of amber"], "query")
        assert not np.allclose(moved, queries)
        queries = moved
    with pytest.raises(ValueError, match="share"):
        freeze_passages(plain(bert))


def test_the_whole_repllama_preset_on_a_tiny_llama(llama: Path, tmp_path: Path) -> None:
    """EOS pooling, prefixes, T 0.01, LoRA and 15 hard negatives; only the adapter moves, and it loads again."""
    encoder = new_encoder(preset("repllama", str(llama)))
    chosen = TrainingSettings.model_validate({"preset": "repllama", "batch_size": 4, "steps": 8, "warmup_steps": 1})
    assert (chosen.temperature, chosen.hard_negatives, chosen.learning_rate) == (0.01, 15, 1e-4)
    assert chosen.lora is not None
    assert (chosen.lora.r, chosen.lora.alpha) == (16, 64)
    add_adapter(encoder, chosen.lora)
    assert trainable(encoder)
    assert all("lora_" in name for name in trainable(encoder))
    frozen = {name: w for name, w in weights(encoder).items() if "lora_" not in name}
    everything = passages_of(rows())
    many = [
        TrainingRow(r.id, r.query, r.positives, tuple(p for p in everything if p not in r.positives)) for r in rows()
    ]
    objective = InBatch(many, chosen, 0)
    assert len(objective.batch(0).passages) == 4 * 16
    train(encoder, objective, chosen, tmp_path / "c", seed=0, sink=Figures())
    assert all(torch.equal(weights(encoder)[name], weight) for name, weight in frozen.items())
    encoder.save(tmp_path / "encoder")
    again = load_encoder(tmp_path / "encoder")
    assert again.settings.append_eos
    np.testing.assert_allclose(
        again.encode(["tell of amber"], "query"), encoder.encode(["tell of amber"], "query"), atol=1e-6
    )


def test_an_adapter_starts_from_the_seed_alone(llama: Path, tmp_path: Path) -> None:
    chosen = settings(lora={"r": 4, "alpha": 8}, steps=1)

    def first_weights(seed: int, before: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(before)  # whatever was drawn earlier
        material = Material(new_encoder(preset("repllama", str(llama))), rows(), [], seed, lambda _title: nullcontext())
        encoder, objective = start(chosen, material)
        assert torch.initial_seed() == before  # and what is drawn later is not changed either
        out = tmp_path / f"{seed}-{before}"
        train(encoder, objective, chosen, out, seed=seed, sink=Figures())
        saved: dict[str, torch.Tensor] = torch.load(out / "checkpoint-0" / "weights.pt", weights_only=True)
        return saved

    one, same, other = first_weights(5, 1), first_weights(5, 2), first_weights(6, 1)
    assert one.keys() == same.keys() and all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_saved_adapter_goes_on_learning(llama: Path, tmp_path: Path) -> None:
    first = new_encoder(preset("repllama", str(llama)))
    add_adapter(first, LoraSettings(r=4, alpha=8))
    first.save(tmp_path / "first")
    again = load_encoder(tmp_path / "first")
    with pytest.raises(TrainingError, match="no weights to train"):
        run(again, settings(steps=1), tmp_path / "frozen")
    add_adapter(again, LoraSettings(r=4, alpha=8))
    assert trainable(again) and all("lora_" in name for name in trainable(again))
    before = {name: weight.clone() for name, weight in trainable(again).items()}
    run(again, settings(steps=3), tmp_path / "on")
    assert any(not torch.equal(before[name], weight) for name, weight in trainable(again).items())


def test_a_gradient_that_is_not_finite_stops_before_the_update(bert: Path, tmp_path: Path) -> None:
    encoder = plain(bert)
    before = weights(encoder)

    class Broken:
        def steps(self, epochs: float) -> int:
            return 1

        def backward(self, encoder: Encoder, step: int) -> dict[str, float]:
            for weight in trainable(encoder).values():
                weight.grad = torch.full_like(weight, float("nan"))
            return {}

    with pytest.raises(TrainingError, match="not finite"):
        train(encoder, Broken(), settings(), tmp_path / "c", seed=0, sink=Figures())
    assert all(torch.equal(weights(encoder)[name], weight) for name, weight in before.items())


def test_the_dev_sets_own_passages_are_searched_beside_those_of_training(tmp_path: Path) -> None:
    def written(name: str, query: str, *passages: Passage) -> str:
        write_rows([TrainingRow(query, query, passages[:1], passages[1:])], tmp_path / name)
        return str(tmp_path / name)

    whole, cut = Passage("7", "Town", "It is old. It is large."), Passage("7", "Town", "It is old.")
    other, last = Passage("8", "Hill", "It is high."), Passage("9", "Mill", "It is small.")
    path = written("dev.jsonl", "what?", whole)
    assert list(load_dev(DevSettings(path=path), 0, [cut, other]).passages) == [whole, other]
    beside = DevSettings(path=path, beside=[written("train.jsonl", "who?", cut, last)])
    assert list(load_dev(beside, 0, [other]).passages) == [whole, last]


def test_judging_by_hand() -> None:
    a, b, c = (Passage(name, "", name) for name in "abc")
    asked = [TrainingRow("same", "q", golds) for golds in ((a, b), (a,), (c,))]
    ideal = 1 + 1 / np.log2(3)
    found = judge_all(asked, [["x", "a", "y", "b"], ["a"], []], 3)
    assert found["recall"] == [0.5, 1.0, 0.0]
    assert found["all_gold"] == [0.0, 1.0, 0.0]
    assert found["ndcg10"] == pytest.approx([(1 / np.log2(3) + 1 / np.log2(5)) / ideal, 1.0, 0.0])


GOLDEN = Path(__file__).parents[2] / "golden" / "retriever_training"
"""A run of the first version of this loop: its backbone, its checkpoint of step 4, the encoder that it kept, and the
weights with which it ended after 8 steps."""


def test_a_run_and_an_encoder_of_the_first_version_go_on(tmp_path: Path) -> None:
    """Dropout, Matryoshka, a margin and a schedule: every state of the checkpoint decides where the run ends."""
    chosen = TrainingSettings.model_validate_json((GOLDEN / "settings.json").read_text(encoding="utf-8"))
    learned = load_rows([SourceSettings(path=str(GOLDEN / "rows.jsonl"))])
    devset = DevSet(learned, passages_of(learned))
    told = Watch(lambda current, _step: means(devset.per_query(current, 1)), "ndcg10", 4)
    shape = {"similarity": "cosine", "query_max_tokens": 8, "passage_max_tokens": 12}
    encoder = new_encoder(DenseEncoderSettings.model_validate({"backbone": str(GOLDEN / "backbone"), **shape}))
    shutil.copytree(GOLDEN / "checkpoints", tmp_path / "c")
    torch.manual_seed(99)
    objective = InBatch(learned, chosen, 0)
    outcome = train(encoder, objective, chosen, tmp_path / "c", seed=0, sink=Figures(), watch=told, resume=True)
    assert (outcome.last_step, outcome.best_step, outcome.best) == (8, 4, pytest.approx(0.9077324383928644))
    ended = torch.load(tmp_path / "c" / "checkpoint-8" / "weights.pt", weights_only=True)
    expected = torch.load(GOLDEN / "expected.pt", weights_only=True)
    assert ended.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(ended[name], weight, rtol=1e-4, atol=1e-6)  # the same bits on the machine it ran on
    kept = load_encoder(GOLDEN / "encoder")
    assert kept.fingerprint == json.loads((GOLDEN / "encoder" / "manifest.json").read_text())["fingerprint"]
    np.testing.assert_allclose(
        kept.encode(["tell of amber"], "query"), encoder.encode(["tell of amber"], "query"), atol=1e-6
    )
