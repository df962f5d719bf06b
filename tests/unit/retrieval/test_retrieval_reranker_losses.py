"""The losses of rerankers against plain references and against sentence-transformers' losses on a real model."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import losses as library
from test_retrieval_cross_encoder import make
from torch import Tensor
from torch.nn import functional

from retrieval.training.rerankers.config import LossSettings
from retrieval.training.rerankers.lists import ListSampler, RankedList
from retrieval.training.rerankers.losses import make_loss
from retrieval.training.rerankers.objective import weighted
from retrieval.training.row import TrainingRow
from sleuth.types import Passage

LISTS = [
    RankedList("who makes salt", ("dunmore makes salt", "arden on the river", "brill"), 1, (1.0, 0.0, 0.0)),
    RankedList(
        "the river", ("estray lies on the river", "corvo river and town", "a b c", "rope", "d"), 2, (1, 1, 0, 0, 0)
    ),
]
TAUGHT = [
    RankedList(LISTS[0].query, LISTS[0].passages, 1, (2.5, -1.0, 0.5)),
    RankedList(LISTS[1].query, LISTS[1].passages, 2, (1.5, 3.0, -2.0, 0.25, 1.0)),
]
SIZES = [len(one.passages) for one in LISTS]


def scores() -> Tensor:
    return torch.tensor([0.3, -0.7, 1.1, 0.2, -0.4, 0.9, 2.0, -1.5], requires_grad=True)


def loss_of(settings: Any, lists: list[RankedList], given: Tensor, ratio: float = 1.0) -> Tensor:
    return make_loss(LossSettings.model_validate(settings), ratio)(lists, given)


def parts(given: Tensor) -> list[list[float]]:
    return [part.tolist() for part in given.detach().split(SIZES)]


def softmax(values: list[float], temperature: float = 1.0) -> list[float]:
    made = [math.exp(value / temperature) for value in values]
    return [value / sum(made) for value in made]


def ranknet(lists: list[RankedList], given: Tensor) -> float:
    found = [
        math.log2(1 + math.exp(s[j] - s[i]))
        for one, s in zip(lists, parts(given), strict=True)
        for i, j in itertools.permutations(range(len(s)), 2)
        if one.labels[i] > one.labels[j]
    ]
    return sum(found) / len(found)


def listnet(lists: list[RankedList], given: Tensor) -> float:
    each = [
        -sum(w * math.log(p) for w, p in zip(softmax(list(one.labels)), softmax(s), strict=True))
        for one, s in zip(lists, parts(given), strict=True)
    ]
    return sum(each) / len(each)


def list_mle(lists: list[RankedList], given: Tensor) -> float:
    each = []
    for one, s in zip(lists, parts(given), strict=True):
        order = sorted(range(len(s)), key=lambda i: -one.labels[i])
        each.append(sum(math.log(sum(math.exp(s[j]) for j in order[n:])) - s[i] for n, i in enumerate(order)))
    return sum(each) / len(each)


def lambdarank(lists: list[RankedList], given: Tensor) -> float:
    found = []
    for one, s in zip(lists, parts(given), strict=True):
        rank = {place: n for n, place in enumerate(sorted(range(len(s)), key=lambda i: -s[i]), start=1)}
        best = sum(1 / math.log2(1 + n) for n in range(1, one.golds + 1))
        for i, j in itertools.permutations(range(len(s)), 2):
            if one.labels[i] > one.labels[j]:
                change = abs(1 / math.log2(1 + rank[i]) - 1 / math.log2(1 + rank[j])) / best
                found.append(change * math.log2(1 + math.exp(s[j] - s[i])))
    return sum(found) / len(found)


@pytest.mark.parametrize(
    ("settings", "reference", "lists"),
    [
        ("ranknet", ranknet, LISTS),
        ({"kind": "ranknet", "target": "teacher"}, ranknet, TAUGHT),
        ("listnet", listnet, LISTS),
        ({"kind": "listnet", "target": "teacher"}, listnet, TAUGHT),
        ("list_mle", list_mle, LISTS),
        ({"kind": "list_mle", "target": "teacher"}, list_mle, TAUGHT),
        ({"kind": "lambda", "weighting": "lambdarank"}, lambdarank, LISTS),
    ],
)
def test_listwise_losses_equal_plain_ones(settings: Any, reference: Any, lists: list[RankedList]) -> None:
    given = scores()
    found = loss_of(settings, lists, given)
    assert found.item() == pytest.approx(reference(lists, given), rel=1e-5)
    found.backward()
    assert given.grad is not None
    assert given.grad.abs().min() > 0


def test_losses_of_a_teacher_equal_plain_ones() -> None:
    given = scores()
    s = parts(given)
    kl = [
        sum(w * math.log(w / p) for w, p in zip(softmax(list(one.labels), 2), softmax(own, 2), strict=True))
        for one, own in zip(TAUGHT, s, strict=True)
    ]
    assert loss_of({"kind": "kl", "temperature": 2}, TAUGHT, given).item() == pytest.approx(sum(kl) / 2, rel=1e-5)
    flat = [label for one in TAUGHT for label in one.labels]
    mse = sum((a - b) ** 2 for a, b in zip(given.tolist(), flat, strict=True)) / len(flat)
    assert loss_of("mse", TAUGHT, given).item() == pytest.approx(mse, rel=1e-5)
    margins = [
        ((own[i] - own[j]) - (one.labels[i] - one.labels[j])) ** 2
        for one, own in zip(TAUGHT, s, strict=True)
        for i in range(one.golds)
        for j in range(one.golds, len(own))
    ]
    assert loss_of("margin_mse", TAUGHT, given).item() == pytest.approx(sum(margins) / len(margins), rel=1e-5)


def test_the_contrastive_loss_is_a_softmax_over_each_list() -> None:
    given = scores()
    lists = [LISTS[0], RankedList("", LISTS[1].passages, 1, (1, 0, 0, 0, 0))]
    plain = [-math.log(softmax(own, 0.5)[0]) for own in parts(given)]
    found = loss_of({"kind": "contrastive", "temperature": 0.5}, lists, given)
    assert found.item() == pytest.approx(sum(plain) / 2, rel=1e-5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CrossEncoder:
    return CrossEncoder(str(make(tmp_path_factory.mktemp("losses") / "model")))


def read(model: CrossEncoder, lists: list[RankedList]) -> Tensor:
    pairs = [(one.query, text) for one in lists for text in one.passages]
    found: Tensor = model(model.preprocess(pairs))["scores"].view(-1)
    return found


def columns(lists: list[RankedList]) -> list[Any]:
    return [[one.query for one in lists], [list(one.passages) for one in lists]]


def gradient(model: CrossEncoder, loss: Tensor) -> tuple[float, Tensor]:
    model.zero_grad()
    loss.backward()
    return loss.item(), torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])


@pytest.mark.parametrize("kind", ["listnet", "list_mle", "ranknet", "lambda"])
def test_lists_in_parts_give_the_librarys_loss_and_gradients(model: CrossEncoder, kind: str) -> None:
    model.eval()
    made: dict[str, Any] = {
        "listnet": library.ListNetLoss,
        "list_mle": lambda m: library.ListMLELoss(m, respect_input_order=False),
        "ranknet": library.RankNetLoss,
        "lambda": library.LambdaLoss,
    }
    labels = [torch.tensor(one.labels) for one in LISTS]
    expected, theirs = gradient(model, made[kind](model)(columns(LISTS), labels))
    found, ours = gradient(model, loss_of(kind, LISTS, read(model, LISTS)))
    assert found == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_pairwise_and_contrastive_losses_are_the_librarys(model: CrossEncoder) -> None:
    model.eval()
    flat = torch.tensor([label for one in LISTS for label in one.labels])
    queries = [one.query for one in LISTS for _ in one.passages]
    texts = [text for one in LISTS for text in one.passages]
    bce = library.BinaryCrossEntropyLoss(model, pos_weight=torch.tensor(2.5))([queries, texts], flat)
    assert loss_of("bce", LISTS, read(model, LISTS), 2.5).item() == pytest.approx(bce.item(), rel=1e-5)
    even = [LISTS[0], RankedList("rope", ("rope", "glass", "paper town"), 1, (3.0, 1.0, -1.0))]
    asked = [[one.query for one in even], *([one.passages[n] for one in even] for n in range(3))]
    plain = library.MultipleNegativesRankingLoss(
        model, num_negatives=None, scale=4.0, activation_fn=torch.nn.Identity()
    )
    mixed = [(*a.passages, *b.passages) for a, b in (even, even[::-1])]
    whole = [RankedList(one.query, texts, 1, (1.0,) + (0.0,) * 5) for one, texts in zip(even, mixed, strict=True)]
    found = loss_of({"kind": "contrastive", "temperature": 0.25}, whole, read(model, whole))
    assert found.item() == pytest.approx(plain(asked, torch.zeros(2)).item(), rel=1e-5)
    margins = library.MarginMSELoss(model)(asked, torch.tensor([one.labels for one in even]))
    assert loss_of("margin_mse", even, read(model, even)).item() == pytest.approx(margins.item(), rel=1e-5)
    taught = torch.tensor([label for one in even for label in one.labels])
    mse = functional.mse_loss(read(model, even), taught)
    assert loss_of("mse", even, read(model, even)).item() == pytest.approx(mse.item(), rel=1e-5)


EVERY = ["bce", "mse", "listnet", "list_mle", "ranknet", "lambda", "margin_mse", "contrastive", "kl"]


@pytest.mark.parametrize("kind", EVERY)
def test_a_list_counts_by_its_weight_whatever_the_loss(kind: str) -> None:
    """Against the weighted mean of the losses of single lists, which are of one size."""
    other = RankedList("the river", ("estray lies on the river", "rope", "a b c"), 1, (1.0, 0.25, -0.5))
    lists = [replace(TAUGHT[0], weight=1.5), replace(other, weight=0.5)]
    if kind not in ("margin_mse", "kl", "mse"):
        lists = [replace(one, labels=(1.0, 0.0, 0.0)) for one in lists]
    given = scores().detach()[:6].requires_grad_()
    loss_of({"kind": kind}, lists, weighted(lists, given)).backward()
    alone = given.detach().clone().requires_grad_()
    parts = (one.weight * loss_of({"kind": kind}, [one], part) for one, part in zip(lists, alone.split(3), strict=True))
    (sum(parts) / 2).backward()
    torch.testing.assert_close(given.grad, alone.grad)
    assert torch.equal(weighted(lists, given), given) and given.grad.abs().min() > 0


def test_weights_of_rows_are_1_on_average_over_those_that_can_be_learned_from() -> None:
    gold, others = Passage("g", "", "gold"), (Passage("a", "", "one"), Passage("b", "", "two"))
    rows = [TrainingRow(f"q{w}", f"q {w}", (gold,), others, weight=w) for w in (1.0, 3.0)]
    rows.append(TrainingRow("no negatives", "q", (gold,), weight=50.0))
    for kind in ("bce", "contrastive"):
        sampler = ListSampler(rows, LossSettings.model_validate({"kind": kind}), 2, 2, seed=0)
        assert {one.query: one.weight for one in sampler.lists(0)} == {"q 1.0": 0.5, "q 3.0": 1.5}
