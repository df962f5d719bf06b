"""Vectors: an index of Sleuth's own, or a faiss file that others made; settings, and how they are opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from retrieval.config import Count, IndexedSettings, Progress, RetrieverSettings
from retrieval.encoders.config import AnyEncoder
from sleuth.errors import ArtifactError, ConfigError
from sleuth.protocols import Retriever


class DenseSettings(IndexedSettings):
    kind: Literal["dense"] = "dense"
    encoder: AnyEncoder | None = None
    """None: the one that the index was made with."""
    index_type: Literal["flat", "hnsw", "ivfpq"] | None = None
    """What the index is, or how one that does not exist yet is made; None: as it is, flat for a new one."""
    dtype: Literal["float32", "float16", "int8"] | None = None
    """How it keeps its vectors; None: as it does, float32 for a new one."""
    ef_search: Count | None = None
    """HNSW: candidates looked at by a search; None: as the index was built."""
    nprobe: Count | None = None
    """IVF: cells looked at by a search; None: as the index was built."""

    def open(self, progress: Progress, /) -> Retriever:
        from retrieval.dense.build import build_dense
        from retrieval.dense.retriever import open_dense, read_dense_manifest
        from retrieval.encoders.loading import open_encoder, reload_encoder

        encoder = open_encoder(self.encoder) if self.encoder is not None else None
        corpus = self.to_be_made_from()
        if corpus is not None:
            if encoder is None:
                raise ConfigError(
                    f"{self.index} does not exist, and no encoder is named to make it with", "set encoder"
                )
            kept, dtype = self.index_type or "flat", self.dtype or "float32"
            with progress(f"encoding {corpus}") as on_progress:
                build_dense(
                    corpus,
                    self.index,
                    encoder,
                    index_type=kept,
                    dtype=dtype,
                    skip_bad_rows=self.skip_bad_rows,
                    on_progress=on_progress,
                )
        manifest = read_dense_manifest(self.index)
        self._check_made_so(manifest)
        if encoder is None:
            if manifest["encoder"]["source"] is None:
                raise ConfigError(f"{self.index} does not say where its encoder lies", "set encoder to its folder")
            encoder = reload_encoder(manifest["encoder"]["source"], manifest["encoder"]["settings"])
        return open_dense(self.index, encoder, ef_search=self.ef_search, nprobe=self.nprobe)

    def _check_made_so(self, manifest: Mapping[str, Any]) -> None:
        from retrieval.dense.build import rebuild_command
        from retrieval.ingest import same_source

        source = manifest["encoder"]["source"] or "ENCODER"
        if self.corpus is not None and not same_source(manifest["corpus"], self.corpus):
            raise ArtifactError(
                f"{self.index} was made from other passages than {self.corpus}",
                f"make it anew with: {rebuild_command(self.index, self.corpus, source, manifest)}",
            )
        for name, wanted in (("index_type", self.index_type), ("dtype", self.dtype)):
            if wanted not in (None, manifest[name]):
                how = {**manifest, name: wanted}
                raise ArtifactError(
                    f"{self.index} has the {name} {manifest[name]}, not {wanted}",
                    f"make it anew with: {rebuild_command(self.index, manifest['corpus']['path'], source, how)}",
                )


class FaissSettings(RetrieverSettings):
    kind: Literal["faiss"] = "faiss"
    faiss_file: Path
    """An index that others made; its vector i belongs to row i of ``corpus``."""
    corpus: Path
    encoder: AnyEncoder
    """What made the vectors."""
    ef_search: Count | None = None
    """HNSW: candidates looked at by a search; None: as the index was built."""
    nprobe: Count | None = None
    """IVF: cells looked at by a search; None: as the index was built."""

    def open(self, _progress: Progress, /) -> Retriever:
        from retrieval.dense.published import open_published
        from retrieval.encoders.loading import open_encoder

        tuning = {"ef_search": self.ef_search, "nprobe": self.nprobe}
        return open_published(self.faiss_file, self.corpus, open_encoder(self.encoder), **tuning)
