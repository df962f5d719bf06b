"""Dense indexes on a cluster: how each actor encodes or holds its part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.cluster.config import ClusterSettings
from retrieval.config import IndexedSettings, RetrieverSettings
from retrieval.encoders.config import EncoderKind
from sleuth.errors import ConfigError
from sleuth.protocols import Retriever

if TYPE_CHECKING:
    from agent.cluster.interface import Actor, Cluster
    from retrieval.encoders.family import PassageEncoder
    from retrieval.encoders.pieces import EncodePieces


@dataclass(frozen=True, slots=True)
class PieceEncoder:
    """Makes the encoding function of an actor; every node must be able to read the passages in ``store``."""

    store: Path
    source: str | EncoderKind
    fingerprint: str
    threads: int | None
    """None: as many as the cores that are reserved for the actor."""
    batch_size: int

    def __call__(self) -> Callable[[range], Any]:
        from retrieval.encoders.loading import open_encoder
        from retrieval.encoders.pieces import encode_piece
        from retrieval.store import PassageStore
        from workflows.logs import quiet_libraries
        from workflows.wiring import limit_threads

        quiet_libraries()
        limit_threads(self.threads)
        encoder, store = open_encoder(self.source), PassageStore(self.store)
        if (found := encoder.tower_fingerprint("passage")) != self.fingerprint:
            raise ConfigError(f"a worker has another encoder ({found}, not {self.fingerprint})", "share its folder")
        return lambda piece: encode_piece(store, encoder, piece, self.batch_size)


@dataclass(frozen=True, slots=True)
class ShardBuild:
    """Opens rows ``start`` to ``stop`` of a flat index on storage that all nodes share."""

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
        from retrieval.dense.retriever import dense_retriever
        from retrieval.open import remembering

        whole = open_flat(self.settings)
        search = ShardedSearch(self.shards, self.sizes, whole.index.vectors.dimension, self.timeout_s)
        made = dense_retriever(whole.encoder, search, whole.passages, whole.name, whole.fingerprint)
        return remembering(made, self.settings)


def open_flat(settings: RetrieverSettings) -> Any:
    """The dense retriever of ``settings``, unwrapped. Raises ConfigError if its vectors cannot be split into shards."""
    from retrieval.dense.retriever import DenseIndex
    from retrieval.dense.search import FlatSearch
    from retrieval.encoders.retriever import EncoderRetriever
    from retrieval.open import open_retriever

    found = open_retriever(settings, cached=False, resilient=False)
    index = found.index if isinstance(found, EncoderRetriever) else None
    if not isinstance(index, DenseIndex) or not isinstance(index.vectors, FlatSearch):
        raise ConfigError("cluster.index_shards needs a dense index of type flat", "set cluster.index_shards to 1")
    return found


def spawn_shards(
    cluster: Cluster, settings: RetrieverSettings, shards: int, restarts: int, timeout_s: float
) -> ShardedIndexOpener:
    """Spawn actors that together hold the index; returns them and what opens a retriever over them."""
    from agent.cluster.interface import Needs
    from agent.cluster.sharding import shard_sizes

    if not isinstance(settings, IndexedSettings):
        raise ConfigError("cluster.index_shards needs retriever.index", "name the folder of a dense index")
    sizes = shard_sizes(len(open_flat(settings)), shards)
    actors, start = [], 0
    for number, size in enumerate(sizes):
        build = ShardBuild(settings.index, start, start + size)
        actors.append(cluster.spawn(f"shard {number}", build, Needs("shard", restarts=restarts, concurrency=4)))
        start += size
    return ShardedIndexOpener(settings, tuple(actors), tuple(sizes), timeout_s)


@contextmanager
def encoding_workers(
    settings: ClusterSettings,
    source: str | EncoderKind,
    local: PassageEncoder,
    threads: int | None,
    batch_size: int,
    token: Path,
) -> Iterator[EncodePieces]:
    """Encodes passages on ``settings.workers`` Ray Data actors, which are stopped at the end of the block.

    ``local`` is the encoder of this process; the actors' encoders must have the same fingerprint.
    """
    from agent.cluster.ray_cluster import RayCluster
    from agent.cluster.ray_data import work_on_pieces

    worker = settings.worker
    cluster = RayCluster(settings, [], token, room=settings.workers * worker.cpus)

    def encode(store: Path, pieces: Sequence[range]) -> Iterator[Any]:
        fingerprint = local.tower_fingerprint("passage")
        build = PieceEncoder(store.resolve(), source, fingerprint, threads, batch_size)
        return work_on_pieces(pieces, build, actors=settings.workers, cpus=worker.cpus, gpus=worker.gpus)

    try:
        yield encode
    finally:
        cluster.close()
