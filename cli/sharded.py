"""Dense indexes over the actors of a cluster: how each actor makes its part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.cluster.config import ClusterSettings
from retrieval.config import RetrieverSettings
from retrieval.encoders.config import EncoderSettings
from sleuth.errors import ConfigError
from sleuth.protocols import Retriever

if TYPE_CHECKING:
    from agent.cluster.interface import Actor, Cluster
    from agent.cluster.sharding import ShardedEncoder


@dataclass(frozen=True, slots=True)
class EncoderBuild:
    """An actor's own copy of the encoder."""

    source: str | EncoderSettings
    threads: int

    def __call__(self) -> EncoderServer:
        from cli.logs import quiet_libraries
        from cli.wiring import limit_threads
        from retrieval.encoders.loading import load_encoder

        quiet_libraries()
        limit_threads(self.threads)
        return EncoderServer(load_encoder(self.source))


class EncoderServer:
    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder

    def status(self) -> str:
        """The fingerprint of what it encodes passages with."""
        return str(self._encoder.tower_fingerprint("passage"))

    def encode(self, texts: Sequence[str], batch_size: int) -> Any:
        return self._encoder.encode(texts, "passage", batch_size)


@dataclass(frozen=True, slots=True)
class ShardBuild:
    """Rows ``start`` to ``stop`` of a flat index on storage that every node sees."""

    index: Path
    start: int
    stop: int

    def __call__(self) -> Any:
        from retrieval.dense.search import FlatSearch
        from retrieval.dense.vectors import StoredVectors, open_vectors

        whole = open_vectors(self.index)
        rows = slice(self.start, self.stop)
        return FlatSearch(StoredVectors(whole.codes[rows], None if whole.scales is None else whole.scales[rows]))


@dataclass(frozen=True, slots=True)
class ShardedIndexOpener:
    """Opens a dense index whose vectors are searched by ``shards``."""

    settings: RetrieverSettings
    shards: tuple[Actor, ...]
    sizes: tuple[int, ...]
    timeout_s: float

    def __call__(self) -> Retriever:
        from agent.cluster.sharding import ShardedSearch
        from retrieval.cache import CachedRetriever
        from retrieval.dense.retriever import DenseRetriever

        whole = open_flat(self.settings)
        search = ShardedSearch(self.shards, self.sizes, whole.vectors.dimension, self.timeout_s)
        made = DenseRetriever(whole.encoder, search, whole.passages, whole.name, whole.fingerprint)
        return CachedRetriever(made, size=self.settings.cache) if self.settings.cache else made


def open_flat(settings: RetrieverSettings) -> Any:
    """The dense retriever of ``settings``, bare. Raises ConfigError where its vectors cannot be cut into shards."""
    from retrieval.dense.retriever import DenseRetriever
    from retrieval.dense.search import FlatSearch
    from retrieval.open import open_retriever

    found = open_retriever(settings, cached=False, resilient=False)
    if not isinstance(found, DenseRetriever) or not isinstance(found.vectors, FlatSearch):
        raise ConfigError("cluster.index_shards needs a dense index of type flat", "set cluster.index_shards to 1")
    return found


def spawn_shards(
    cluster: Cluster, settings: RetrieverSettings, shards: int, restarts: int, timeout_s: float
) -> ShardedIndexOpener:
    """Actors that hold the index together, and what opens a retriever over them."""
    from agent.cluster.interface import Needs
    from agent.cluster.sharding import shard_sizes

    if settings.index is None:
        raise ConfigError("cluster.index_shards needs retriever.index", "name the folder of a dense index")
    sizes = shard_sizes(len(open_flat(settings)), shards)
    actors, start = [], 0
    for number, size in enumerate(sizes):
        build = ShardBuild(settings.index, start, start + size)
        actors.append(cluster.spawn(f"shard {number}", build, Needs("shard", restarts=restarts, concurrency=4)))
        start += size
    return ShardedIndexOpener(settings, tuple(actors), tuple(sizes), timeout_s)


@contextmanager
def encoding_actors(
    settings: ClusterSettings, source: str | EncoderSettings, local: Any, threads: int, piece: int, token: Path
) -> Iterator[ShardedEncoder]:
    """``local`` with its passages encoded by ``settings.workers`` actors, ended when the block is left."""
    from agent.cluster.interface import ClusterError, Needs
    from agent.cluster.pool import Crew, Patience
    from agent.cluster.roles import open_cluster
    from agent.cluster.sharding import ShardedEncoder

    cluster = open_cluster(
        settings, [("encoder", settings.worker.cpus, settings.worker.gpus)] * settings.workers, token
    )
    try:
        needs = Needs("encoder", settings.worker.cpus, settings.worker.gpus, settings.restarts, concurrency=2)
        build: Callable[[], object] = EncoderBuild(source, threads)
        actors = [cluster.spawn(f"encoder {number}", build, needs) for number in range(settings.workers)]
        expected = local.tower_fingerprint("passage")
        for actor in actors:
            if (found := actor.call("status").result(settings.start_timeout_s)) != expected:
                raise ClusterError(f"{actor.name} has another encoder ({found}, not {expected})", "share its folder")
        patience = Patience(settings.deadline_s, settings.retries, settings.start_timeout_s)
        yield ShardedEncoder(local, Crew(actors), piece, patience)
    finally:
        cluster.close()
