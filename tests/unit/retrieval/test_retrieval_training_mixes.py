"""The loop with teachers, instructions, several sources and all directions: caching, resume, and what a batch holds."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import EVERYTHING, FAMILIES, instructable, masked_lm, taught_rows
from test_retrieval_training_run import Figures, settings

from retrieval.encoders.encoder import Encoder
from retrieval.encoders.family import Encoded
from retrieval.passages import passage_text
from retrieval.training.config import FrozenSettings, InBatchSettings
from retrieval.training.frozen import Table
from retrieval.training.instructions import encode_queries, instructed, prompt_for
from retrieval.training.objective import AgainstTable, InBatch
from retrieval.training.row import TrainingRow, passages_of
from retrieval.training.sampling import BatchSampler, sampler_of
from retrieval.training.start import Material, timed
from retrieval.training.terms import terms_of
from retrieval.training.trainer import train, trainable
from sleuth.errors import ConfigError
from sleuth.types import Passage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return masked_lm(tmp_path_factory.mktemp("still") / "b")


@pytest.fixture(scope="module")
def dropping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return masked_lm(tmp_path_factory.mktemp("dropping") / "b", dropout=0.1)


def step_of(encoder: Encoder, **changes: Any) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    chosen = settings(**EVERYTHING, **changes)
    encoder.model.train().double()
    figures = InBatch(taught_rows(), chosen, 0, terms_of(chosen, encoder)).backward(encoder, 0)
    return figures, gradients(encoder)


def gradients(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in trainable(encoder).items() if weight.grad is not None}


def test_chunks_of_any_size_are_one_pass(folder: Path) -> None:
    whole, expected = step_of(instructable(folder), micro_batch=None)
    assert {"loss", "kl", "margin_mse"} <= whole.keys()
    assert min(whole["loss"], whole["kl"], whole["margin_mse"]) > 0
    for size in (1, 3):
        figures, found = step_of(instructable(folder), micro_batch=size)
        assert figures == pytest.approx(whole, rel=1e-9)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_all_of_it(family: str, folder: Path) -> None:
    data = [replace(row, instruction="") for row in taught_rows()]  # their prompts have no place for one
    found = []
    for size in (None, 3):
        encoder, chosen = FAMILIES[family](folder), settings(**EVERYTHING, micro_batch=size)
        encoder.model.train().double()
        figures = InBatch(data, chosen, 0, terms_of(chosen, encoder)).backward(encoder, 0)
        found.append((figures, gradients(encoder)))
    (whole, expected), (chunked, in_chunks) = found
    assert chunked == pytest.approx(whole, rel=1e-9)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-3
    for name, gradient in expected.items():
        torch.testing.assert_close(in_chunks[name], gradient, rtol=1e-8, atol=1e-10)


def test_the_weight_of_infonce_beside_a_teacher(folder: Path) -> None:
    """Without InfoNCE the gradients are the teacher's alone; figures still show it."""
    parts = {"kl": {"kl": 1.0, "contrastive": 0.0}, "both": {"kl": 1.0, "contrastive": 0.3}}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, distillation in parts.items():
        chosen, encoder = settings(distillation=distillation), instructable(folder)
        encoder.model.train().double()
        assert InBatch(taught_rows(), chosen, 0, terms_of(chosen, encoder)).backward(encoder, 0)["loss"] > 0.1
        found[name] = gradients(encoder)
    encoder = instructable(folder)
    encoder.model.train().double()
    InBatch(taught_rows(), settings(), 0).backward(encoder, 0)
    for name, contrastive in gradients(encoder).items():
        torch.testing.assert_close(found["both"][name], found["kl"][name] + 0.3 * contrastive, rtol=1e-8, atol=1e-11)


def test_a_killed_run_with_everything_ends_with_the_same_bits(dropping: Path, tmp_path: Path) -> None:
    chosen = settings(**EVERYTHING, batches="one_source", batch_size=4, steps=6)

    def objective(encoder: Encoder) -> InBatch:
        return InBatch(taught_rows(), chosen, 0, terms_of(chosen, encoder))

    def run(out: str, made: InBatch, encoder: Encoder, resume: bool = False) -> None:
        train(encoder, made, chosen, tmp_path / out, seed=0, sink=Figures(), resume=resume)

    class Killed(Exception):  # noqa: N818
        pass

    class DiesAt5(InBatch):
        def backward(self, encoder: Encoder, step: int) -> dict[str, float]:
            if step == 5:
                raise Killed
            return super().backward(encoder, step)

    whole, first = instructable(dropping), instructable(dropping)
    run("whole", objective(whole), whole)
    with pytest.raises(Killed):
        run("broken", DiesAt5(taught_rows(), chosen, 0, terms_of(chosen, first)), first)
    torch.manual_seed(99)
    resumed = instructable(dropping)
    run("broken", objective(resumed), resumed, resume=True)
    for name, weight in trainable(whole).items():
        assert torch.equal(weight, trainable(resumed)[name]), name


def of_sources(**counts: int) -> list[TrainingRow]:
    return [
        TrainingRow(f"{name}{i}", f"{name}{i}?", (Passage(f"{name}{i}", "", f"{name}{i}."),), source=name)
        for name, count in counts.items()
        for i in range(count)
    ]


def test_a_batch_of_one_source_holds_no_other_and_no_row_is_left_out() -> None:
    rows = of_sources(large=20, small=5, tiny=2)
    sampler = BatchSampler(rows, 4, 0, seed=1, one_source=True)
    cycle = sampler.steps(1)
    assert cycle == 5 + 2 + 1
    for first in (0, cycle):
        batches = [[row for _, row in sampler.rows(step)] for step in range(first, first + cycle)]
        assert all(len({row.source for row in batch}) == 1 for batch in batches)
        assert {row.id for batch in batches for row in batch} == {row.id for row in rows}
        assert sorted(len(batch) for batch in batches) == [2, *[4] * 7]
    orders = [[sampler.rows(step)[0][1].source for step in range(n * cycle, (n + 1) * cycle)] for n in range(4)]
    assert len(set(map(tuple, orders))) > 1  # not the same turns each time
    again = BatchSampler(rows, 4, 0, seed=1, one_source=True)
    assert [again.rows(step) for step in (7, 3, 20)] == [sampler.rows(step) for step in (7, 3, 20)]


def test_batches_of_sources_without_weights_do_not_change() -> None:
    """A run that was begun by an earlier version goes on with its batches."""

    def batches(steps: int, **chosen: bool) -> list[list[str]]:
        sampler = BatchSampler(of_sources(large=5, small=3), 2, 0, seed=3, **chosen)
        return [[row.id for _, row in sampler.rows(step)] for step in range(steps)]

    assert batches(4) == [["large2", "large3"], ["small0", "small1"], ["large1", "small2"], ["large4", "large0"]]
    assert batches(5, one_source=True) == [
        ["large2", "large0"],
        ["small0", "small1"],
        ["small2", "small0"],
        ["large3", "large4"],
        ["large1", "large3"],
    ]


def test_the_regulariser_rises_over_the_steps_that_are_taken() -> None:
    rows = of_sources(large=20, small=5, tiny=2)
    chosen = InBatchSettings.model_validate({"batch_size": 4, "hard_negatives": 0, "batches": "one_source"})
    encoder: Any = None
    material = Material(encoder, rows, [], 1, lambda _title: nullcontext(lambda _a, _b: None))
    assert timed(chosen, material).steps == sampler_of(rows, chosen, 1).steps(1) == 8


def test_one_source_of_a_single_set_changes_nothing() -> None:
    rows = of_sources(only=10)
    mixed, alone = BatchSampler(rows, 4, 0, seed=3), BatchSampler(rows, 4, 0, seed=3, one_source=True)
    assert mixed.steps(2) == alone.steps(2) == 5
    assert {row.source for step in range(5) for _, row in mixed.rows(step)} == {"only"}
    mixed_two = BatchSampler(of_sources(a=8, b=8), 8, 0, seed=3)
    assert any(len({row.source for _, row in mixed_two.rows(step)}) == 2 for step in range(2))


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("Instruct: Find it\nQuery: ", "Instruct: Find code\nQuery: "),
        ("Instruct: Find it\nQuery:", "Instruct: Find code\nQuery:"),
    ],
)
def test_an_instruction_takes_the_place_of_the_encoders(own: str, expected: str) -> None:
    assert prompt_for(own, "Find code") == expected
    assert prompt_for(own, "") == own
    for other in ("", "query: "):
        assert prompt_for(other, "") == other
        with pytest.raises(ConfigError, match="no place for one"):
            prompt_for(other, "Find code")


def test_rows_are_encoded_with_their_own_instruction_in_training_and_evaluation(folder: Path) -> None:
    encoder, rows = instructable(folder), taught_rows()
    found = encode_queries(encoder, rows, 3).values
    for row, vector in zip(rows, found, strict=True):
        settings = encoder.settings.model_copy(update={"query_prompt": ""})
        whole = f"{prompt_for(encoder.settings.query_prompt, row.instruction)}{row.query}"
        bare = Encoder(encoder.model, settings, encoder.family).encode([whole], "query")[0]
        torch.testing.assert_close(vector, torch.from_numpy(bare), rtol=1e-5, atol=1e-6)
    assert instructed(encoder, "").settings.query_prompt == encoder.settings.query_prompt
    assert (found[0] - encoder.encode_texts([rows[0].query], "query").values[0]).abs().max() < 1e-6
    other = encoder.encode_texts([rows[1].query], "query").values[0]
    assert (found[1] - other).abs().max() > 1e-3


def test_frozen_passages_take_teachers_and_directions_too(folder: Path) -> None:
    """Against all passages the same step as in a batch that holds them all."""
    rows, chosen = taught_rows(), {**EVERYTHING, "directions": EVERYTHING["directions"][:3], "batch_size": 12}
    encoder = instructable(folder)
    encoder.model.train().double()
    passages = passages_of(rows)
    with torch.no_grad():
        features = encoder.features([passage_text(p) for p in passages], "passage")
        table = Table(passages, Encoded(encoder.embed(features, "passage").values))
    figures = {}
    for against in ("batch", "all"):
        settings = FrozenSettings(against=against, **chosen)  # type: ignore[arg-type]
        figures[against] = AgainstTable(rows, table, settings, 0, terms_of(settings, encoder)).backward(encoder, 0)
    assert figures["all"] == pytest.approx(figures["batch"], rel=1e-9)
    assert {"loss", "kl", "margin_mse"} <= figures["all"].keys()
