"""What is said of the pool of real questions holds, as the script for it works it out."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from real_data import (
    Pool,
    leaking_rows,
    lost_golds,
    read_pool,
    recurring_passages,
    recurring_titles,
    shared_titles,
    twice_in_a_title,
)

from sleuth.leaks import Leaks
from sleuth.types import Question

DATA = os.environ.get("SLEUTH_DATA")


def asked(name: str, titles: tuple[str, ...], ids: tuple[str, ...], **more: bool) -> Question:
    return Question(name, "?", ("a",), titles, "single", pack=name[0], gold_ids=ids, **more)


def test_on_a_few_rows() -> None:
    train = [
        asked("a1", ("Oslo",), ("1",)),
        asked("a2", ("Oslo",), ("2",)),
        asked("b1", ("Rome",), ("4", "9")),
        asked("b2", ("Rome",), ("4", "9"), alternatives=True),
    ]
    dev = [asked("d", ("Oslo", "Nice"), ("1", "3"))]
    pool = Pool({"1": "Oslo", "2": "Oslo", "3": "Nice", "4": "Rome", "5": "Oslo"}, train, dev)
    assert shared_titles(pool) == (3, ("Oslo", 3))
    assert recurring_titles(pool) == (1, 2)
    assert recurring_passages(pool) == (1, 2)
    assert leaking_rows(pool) == (Leaks(of=4, by_passage=1, by_title=1), Counter(a=2))
    assert lost_golds(pool) == 1
    assert twice_in_a_title(train) == 1


@pytest.mark.data
@pytest.mark.skipif(not DATA, reason="SLEUTH_DATA is not set")
def test_on_the_pool_itself() -> None:
    pool = read_pool(Path(DATA or "") / "wiki")
    assert (len(pool.titles), len(pool.train), len(pool.dev)) == (48_297, 12_221, 1_731)
    assert shared_titles(pool) == (11_253, ("Istanbul", 75))
    assert recurring_titles(pool) == (38, 1_022)
    assert recurring_passages(pool) == (3, 1_327)
    leaks, packs = leaking_rows(pool)
    assert leaks == Leaks(of=12_221, by_passage=22, by_title=111)
    assert packs == Counter(xquad=57, musique_more=43, afriqa=21, nq=8, hotpotqa_more=1) + Counter({"2wiki_more": 3})
    assert lost_golds(pool) == 0
    assert (twice_in_a_title(pool.train), twice_in_a_title(pool.dev)) == (56, 6)
