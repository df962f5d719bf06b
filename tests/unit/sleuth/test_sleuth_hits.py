"""A passage stands once in what a retriever found."""

from sleuth.hits import distinct, first_seen
from sleuth.types import Hit, Passage

A, B, C = (Passage(name, name, name) for name in "abc")


def test_the_better_score_stays_the_order_is_best_first_and_ranks_count_from_one() -> None:
    found = [Hit(A, 1.0, 1), Hit(B, 3.0, 2), Hit(C, 3.0, 3), Hit(A, 2.0, 4), Hit(B, -1.0, 5)]
    assert distinct(found) == [Hit(B, 3.0, 1), Hit(C, 3.0, 2), Hit(A, 2.0, 3)]


def test_what_has_no_repeats_stays_as_it_is() -> None:
    found = [Hit(A, 1.0, 1), Hit(B, 3.0, 2)]
    assert distinct(found) == found
    assert distinct([]) == []


def test_a_passage_stays_with_the_first_query_that_found_it() -> None:
    a, b, c = (Hit(passage, 1.0, rank) for rank, passage in enumerate((A, B, C), start=1))
    assert first_seen([[a, b], [b, c], [a], []]) == [[a, b], [c], [], []]
    assert first_seen([]) == []
