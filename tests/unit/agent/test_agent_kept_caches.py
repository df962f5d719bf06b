"""What a rollout keeps in memory between its turns: bounded in bytes, without a token changed."""

from __future__ import annotations

from typing import Any

import pytest

from agent.config import PolicySettings
from agent.policies.kv_cache import RowCache
from agent.policies.transformers_policy import TransformersPolicy
from sleuth.errors import ConfigError
from sleuth.settings import validate
from sleuth.types import Request, Sampling

ROWS, BATCH, BUDGET = 64, 4, 3
SAMPLED = Sampling(1.0)


def play(policy: TransformersPolicy, codec: Any, turns: int = 2) -> tuple[list[tuple[int, ...]], list[int]]:
    """The tokens sampled in some turns of 64 episodes, and the bytes kept after each turn."""
    sampled, kept = [], []
    prefixes = [codec.encode("what is the capital of France ? " * (1 + i % 3), trusted=True) for i in range(ROWS)]
    for turn in range(turns):
        requests = [Request(f"q{i}#0", prefix, BUDGET, 100 * turn + i) for i, prefix in enumerate(prefixes)]
        for prefix, generation in zip(prefixes, policy.generate(requests, SAMPLED), strict=True):
            sampled.append(generation.token_ids)
            prefix += [*generation.token_ids, *codec.encode("the city of Paris", trusted=True)]
        kept.append(policy.kept_bytes)
    return sampled, kept


@pytest.fixture(scope="module")
def unbounded(tiny: Any) -> tuple[list[tuple[int, ...]], list[int]]:
    model, codec = tiny
    return play(TransformersPolicy(model, codec, max_rows=BATCH, cache_bytes=None), codec)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5])
def test_a_bound_keeps_to_its_bytes_and_changes_no_token(tiny: Any, unbounded: Any, share: float) -> None:
    model, codec = tiny
    sampled, kept = unbounded
    bound = int(share * kept[0])
    policy = TransformersPolicy(model, codec, max_rows=BATCH, cache_bytes=bound)
    same, less = play(policy, codec)
    assert same == sampled
    assert kept[0] > bound and all(held <= bound for held in less)
    assert (less[0] > 0) == (share > BATCH / ROWS)  # a batch that is larger than the bound is not kept at all


def test_the_batch_being_sampled_counts_too(tiny: Any, unbounded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, codec = tiny
    bound = unbounded[1][0] // 3
    policy = TransformersPolicy(model, codec, max_rows=BATCH, cache_bytes=bound)
    peaks, feed = [], RowCache.feed

    def watched(cache: RowCache, *args: Any) -> Any:
        logits = feed(cache, *args)
        peaks.append(policy.kept_bytes + cache.nbytes)
        return logits

    monkeypatch.setattr(RowCache, "feed", watched)
    play(policy, codec)
    assert bound / 2 < max(peaks) <= bound


def test_what_fits_is_not_encoded_again(tiny: Any, unbounded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches come in the same order every turn: the least recently used would go just before its turn."""
    model, codec = tiny
    fed: list[int] = []
    feed = RowCache.feed

    def counted(cache: RowCache, model: Any, new: Any, pad: int) -> Any:
        fed.append(sum(map(len, new)))
        return feed(cache, model, new, pad)

    monkeypatch.setattr(RowCache, "feed", counted)

    def encoded(bound: int | None) -> int:
        fed.clear()
        play(TransformersPolicy(model, codec, max_rows=BATCH, cache_bytes=bound), codec)
        return sum(fed)

    everything, half, nothing = encoded(None), encoded(unbounded[1][1] // 2), encoded(0)
    assert everything < half < nothing
    assert (nothing - half) / (nothing - everything) > 0.3  # of the work that keeping everything saves


def test_the_bound_is_written_in_bytes_or_with_a_unit() -> None:
    def bound(value: Any) -> int | None:
        return PolicySettings(model="m", cache_bytes=value).cache_bytes

    assert PolicySettings(model="m").cache_bytes == 4 * 2**30
    assert (bound("4GiB"), bound("100MB"), bound(0), bound(None)) == (4 * 2**30, 10**8, 0, None)
    assert PolicySettings(model="m", cache_bytes="1KiB").model_dump(mode="json")["cache_bytes"] == 1024
    for wrong in (-1, "4 gibbons", True, "", 1e40):
        with pytest.raises(ConfigError, match=r"cache_bytes: write a size such as 8GiB, a number of bytes, 0, or null"):
            validate(PolicySettings, {"model": "m", "cache_bytes": wrong}, "run.yaml")
