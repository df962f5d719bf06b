"""Tables of studies whose seeds stand for parts of the queries."""

from __future__ import annotations

from family_study import Result, table


def result(seed: int, *values: float) -> Result:
    per_query = {f"{seed}/{number}": value for number, value in enumerate(values)}
    return Result("bm25", seed, {"R@5": per_query, "nDCG@10": per_query}, None, 1.0, None)


def test_a_table_counts_each_query_once_where_folds_differ_in_size() -> None:
    folds = [result(0, 1.0), result(1, 0.0, 0.0, 0.0)]
    assert "| 0.250 | 0.000 - 1.000 |  | 0.250 |" in table(folds, "bm25", pooled=True)
    assert "| 0.500 | 0.000 - 1.000 |  | 0.500 |" in table(folds, "bm25")
