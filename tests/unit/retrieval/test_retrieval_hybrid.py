"""Fusion by hand, and that the fused list does not depend on what it must not depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.combine.hybrid import Fusion, HybridRetriever, normalised_sum, raw_sum, reciprocal_rank
from retrieval.combine.rerank import RerankRetriever
from sleuth.errors import ConfigError, RetrieverError
from sleuth.explanations import Explanation
from sleuth.pictures import search_images, search_mixed
from sleuth.protocols import SearchesImages
from sleuth.types import Hit, Image, Passage


class Fixed:
    """Always the same list; it keeps what it was asked for."""

    def __init__(self, scores: Mapping[str, float], name: str = "fixed", passages: int | None = None) -> None:
        self.fingerprint = name
        self.passages = passages
        self.asked: list[int] = []
        self._hits = [
            Hit(Passage(identifier, "", f"text of {identifier}"), score, rank)
            for rank, (identifier, score) in enumerate(scores.items(), start=1)
        ]

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.asked.append(k)
        return [self._hits[:k] if query else [] for query in queries]


A = {"x": 9.0, "y": 5.0, "z": 1.0}
B = {"y": 0.8, "w": 0.6}


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.passage.id for hit in hits]


def lists() -> list[list[Hit]]:
    return [Fixed(A).search(["q"], 9)[0], Fixed(B).search(["q"], 9)[0]]


def test_reciprocal_rank_by_hand() -> None:
    scores = reciprocal_rank(lists(), [1, 1], 60)
    assert scores == pytest.approx({"x": 1 / 61, "y": 1 / 62 + 1 / 61, "z": 1 / 63, "w": 1 / 62})
    assert reciprocal_rank(lists(), [2, 0.5], 0) == pytest.approx({"x": 2, "y": 1 + 0.5, "z": 2 / 3, "w": 0.25})


def test_normalised_sum_by_hand() -> None:
    assert normalised_sum(lists(), [0.5, 0.5]) == pytest.approx({"x": 0.5, "y": 0.25 + 0.5, "z": 0.0, "w": 0.0})
    equal = [Fixed({"x": 3.0, "y": 3.0}).search(["q"], 9)[0], []]
    assert normalised_sum(equal, [0.25, 0.75]) == {"x": 0.25, "y": 0.25}


def test_dpr_sum_by_hand_a_missing_score_is_the_lowest_of_its_list() -> None:
    scores = raw_sum(lists(), [1, 1.1])
    assert scores == pytest.approx({"x": 9 + 1.1 * 0.6, "y": 5 + 1.1 * 0.8, "z": 1 + 1.1 * 0.6, "w": 1 + 1.1 * 0.6})
    assert raw_sum([lists()[0], []], [1, 1.1]) == pytest.approx(A)


def test_ranks_count_from_one_and_ties_stand_in_order_of_id() -> None:
    hybrid = HybridRetriever([Fixed({"b": 1.0, "c": 0.5}), Fixed({"c": 1.0, "b": 0.5})])
    (hits,) = hybrid.search(["q"], 2)
    assert [(hit.rank, hit.passage.id) for hit in hits] == [(1, "b"), (2, "c")]
    assert hits[0].score == hits[1].score == pytest.approx(1 / 61 + 1 / 62)


@pytest.mark.parametrize("fusion", ["rrf", "sum", "dpr"])
def test_what_the_parts_give_adds_up_to_the_score(fusion: Fusion) -> None:
    hybrid = HybridRetriever([Fixed(A), Fixed(B)], fusion=fusion, weights=[1, 3])
    (hits,) = hybrid.search(["q"], 4)
    for hit, reason in zip(hits, hybrid.explain("q", hits), strict=True):
        assert sum(part.score for part in reason.parts) == pytest.approx(hit.score)
        assert [part.score for part in reason.parts] == sorted((part.score for part in reason.parts), reverse=True)
    said = {hit.passage.id: dict(_said(r)) for hit, r in zip(hits, hybrid.explain("q", hits), strict=True)}
    assert said["y"] == {"part 1": "rank 2, score 5.0000", "part 2": "rank 1, score 0.8000"}
    assert said["w"] == {"part 1": "not found", "part 2": "rank 2, score 0.6000"}


def _said(reason: Explanation) -> list[tuple[str, str]]:
    return [(part.query_term, part.passage_term) for part in reason.parts]


def test_a_reranked_hit_says_where_it_stood_before() -> None:
    class ByLength:
        fingerprint = "length"

        def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
            return [-float("xyzw".index(text[-1])) - 1 for _, text in pairs][::-1]

    reranked = RerankRetriever(Fixed(A), ByLength(), depth=3)
    (hits,) = reranked.search(["q"], 3)
    assert ids(hits) == ["z", "y", "x"]
    reasons = reranked.explain("q", hits)
    assert _said(reasons[0]) == [("reranker", "rank 3, score 1.0000 before")]
    assert [reason.parts[0].score for reason in reasons] == [hit.score for hit in hits]


class Twice(Fixed):
    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [[*hits, *hits] for hits in super().search(queries, k)]


def test_a_part_that_returns_a_passage_twice_counts_once() -> None:
    for fusion in ("rrf", "sum", "dpr"):
        plain, doubled = (HybridRetriever([kind(A), Fixed(B)], fusion=fusion) for kind in (Fixed, Twice))
        assert doubled.search(["q"], 4) == plain.search(["q"], 4)


def test_each_part_is_asked_to_the_depth_or_to_its_end() -> None:
    parts = [Fixed(A, passages=3), Fixed(A)]
    HybridRetriever(parts, depth=20).search(["q"], 2)
    assert [part.asked for part in parts] == [[3], [20]]
    shallow = HybridRetriever([Fixed(A), Fixed(A)], depth=2)
    assert ids(shallow.search(["q"], 9)[0]) == ["x", "y"]


def test_the_fingerprint_tells_what_could_change_hits() -> None:
    parts = [Fixed(A, "a"), Fixed(B, "b")]
    made = [
        HybridRetriever(parts),
        HybridRetriever(parts[::-1]),
        HybridRetriever(parts, rrf_k=10),
        HybridRetriever(parts, depth=50),
        HybridRetriever(parts, weights=[1, 2]),
        HybridRetriever(parts, fusion="sum"),
        HybridRetriever(parts, fusion="dpr"),
        HybridRetriever([Fixed(A, "c"), Fixed(B, "b")]),
    ]
    assert len({hybrid.fingerprint for hybrid in made}) == len(made)
    assert HybridRetriever(parts, fusion="sum", rrf_k=10).fingerprint == made[5].fingerprint


def test_parts_of_different_corpora_are_refused() -> None:
    other = Fixed(B)
    other._hits = [Hit(Passage("y", "", "another text"), 1.0, 1)]
    with pytest.raises(ConfigError, match="different passages with the id 'y'"):
        HybridRetriever([Fixed(A), other]).search(["q"], 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1]}, "1 weights do not match 2 parts"),
        ({"weights": [1, -1]}, "must be 0 or more"),
        ({"weights": [0, 0]}, "not all 0"),
        ({"rrf_k": -1}, "rrf_k is -1"),
        ({"depth": 0}, "depth is 0"),
    ],
)
def test_settings_that_mean_nothing(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HybridRetriever([Fixed(A), Fixed(B)], **options)  # type: ignore[arg-type]


def test_a_hybrid_needs_parts_and_dpr_its_two() -> None:
    with pytest.raises(ConfigError, match="has 1 parts"):
        HybridRetriever([Fixed(A)])
    with pytest.raises(ConfigError, match="no default weights for 3 parts"):
        HybridRetriever([Fixed(A)] * 3, fusion="dpr")


SCORES = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(-5, 5), max_size=8)


@given(SCORES, SCORES, st.sampled_from(["rrf", "sum", "dpr"]))
def test_order_of_parts_does_not_matter_and_nothing_is_lost(a: dict, b: dict, fusion: str) -> None:
    a, b = (dict(sorted(scores.items(), key=lambda item: -item[1])) for scores in (a, b))
    ab = HybridRetriever([Fixed(a), Fixed(b)], fusion=fusion, weights=[1, 2])  # type: ignore[arg-type]
    ba = HybridRetriever([Fixed(b), Fixed(a)], fusion=fusion, weights=[2, 1])  # type: ignore[arg-type]
    (first,), (second,) = ab.search(["q"], 20), ba.search(["q"], 20)
    assert set(ids(first)) == set(a) | set(b)
    assert {h.passage.id: h.score for h in first} == pytest.approx({h.passage.id: h.score for h in second})


class Lengths:
    """Prefers what shares the query's first letter; keeps the pairs that it saw."""

    fingerprint = "lengths"

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, str]]] = []

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        self.calls.append(list(pairs))
        return [float(text.endswith(query[0])) for query, text in pairs]


def test_each_query_is_scored_against_its_own_passages_only_all_in_one_call() -> None:
    class ByQuery(Fixed):
        def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
            return [[hit for hit in self._hits if hit.passage.id in query] for query in queries]

    scorer = Lengths()
    found = RerankRetriever(ByQuery(A), scorer).search(["zx", "yx", "nothing"], 3)
    assert scorer.calls == [[("zx", "text of x"), ("zx", "text of z"), ("yx", "text of x"), ("yx", "text of y")]]
    assert [ids(hits) for hits in found] == [["z", "x"], ["y", "x"], []]
    assert [(hit.rank, hit.score) for hit in found[0]] == [(1, 1.0), (2, 0.0)]


def test_only_the_best_are_ranked_again_and_equal_ones_keep_their_order() -> None:
    inner = Fixed(A, passages=3)
    reranked = RerankRetriever(inner, Lengths(), depth=2)
    assert ids(reranked.search(["z?"], 3)[0]) == ["x", "y"]
    assert inner.asked == [2]
    assert reranked.passages == 3


def test_a_passage_returned_twice_is_scored_and_ranked_once() -> None:
    scorer = Lengths()
    (hits,) = RerankRetriever(Twice(A), scorer).search(["z?"], 3)
    assert ids([*hits]) == ["z", "x", "y"]
    assert len(scorer.calls[0]) == 3


def test_a_score_that_is_no_number_is_an_error_not_a_rank() -> None:
    class Broken:
        fingerprint = "broken"

        def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
            return [float("nan")] * len(pairs)

    with pytest.raises(RetrieverError, match="no finite score"):
        RerankRetriever(Fixed(A), Broken()).search(["q"], 1)


class Pictures(Fixed):
    def search_images(self, images: Sequence[Image], k: int) -> list[list[Hit]]:
        return [hits[::-1] for hits in self.search([image.name for image in images], k)]


def test_pictures_are_asked_of_all_parts_and_fused() -> None:
    image = Image("a.png", "0" * 64, b"")
    parts = [Pictures(A, "a"), Pictures(B, "b")]
    assert isinstance(HybridRetriever(parts), SearchesImages)
    (found,) = search_images(HybridRetriever(parts), [image], 3)
    reversed_lists = [part.search_images([image], 9)[0] for part in parts]
    scores = reciprocal_rank(reversed_lists, [1, 1], 60)
    assert {hit.passage.id: hit.score for hit in found} == pytest.approx({name: scores[name] for name in ids(found)})


def test_a_part_that_reads_no_pictures_is_named_before_any_is_searched() -> None:
    image, asked = Image("a.png", "0" * 64, b""), []

    class Watched(Pictures):
        def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
            asked.extend(queries)
            return super().search(queries, k)

    hybrid = HybridRetriever([Watched(A, "a"), Fixed(B, "b")])
    nested = HybridRetriever([Watched(A, "a"), hybrid])
    with pytest.raises(ConfigError, match="part 2 of the hybrid: this retriever reads no pictures of queries"):
        search_images(hybrid, [image], 3)
    with pytest.raises(ConfigError, match="part 2 of the hybrid: part 2 of the hybrid: this retriever reads no"):
        search_images(nested, [image], 3)
    with pytest.raises(ConfigError, match="part 2 of the hybrid"):
        search_mixed(hybrid, ["oslo", image], 3)
    assert not asked
