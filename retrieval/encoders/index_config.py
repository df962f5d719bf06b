"""Settings that all indexes of encoded passages share, and how one is made where it is missing, and opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from retrieval.config import Count, IndexedSettings, Progress
from retrieval.encoders.config import AnyEncoder
from retrieval.windows_config import source_named
from sleuth.errors import ArtifactError, ConfigError
from sleuth.plugins import load_object
from sleuth.protocols import Retriever

if TYPE_CHECKING:
    from retrieval.encoders.indexes import IndexKind


class EncodedIndexSettings(IndexedSettings):
    """A kind whose index holds what an encoder gave; the kind of index is that of the encoder."""

    INDEX: ClassVar[str]
    """Dotted path of the kind's `IndexKind`."""
    MADE: ClassVar[Mapping[str, object]]
    """The settings that shape an index, and what each is for a new one. None in a config: as the index has it."""

    encoder: AnyEncoder | None = None
    """None: the one that the index was made with."""
    query_batch: Count | None = None
    """Queries encoded at once; None: 8 on a CPU, else 64."""

    @classmethod
    def index_of(cls) -> IndexKind:
        made: IndexKind = load_object(cls.INDEX)
        return made

    @classmethod
    def named(cls, encoder: Any) -> Any:
        """What a config or a command line calls ``encoder``, spelled out where a kind takes it more shortly."""
        return encoder

    @classmethod
    def applying(cls, how: Mapping[str, Any]) -> Mapping[str, Any]:
        """What of ``how`` shapes an index that is made so: all of it, but in a kind whose types differ in that."""
        return how

    def made(self) -> dict[str, Any]:
        """What a new index is made with."""
        given = {name: getattr(self, name) for name in self.MADE}
        return {name: self.MADE[name] if value is None else value for name, value in given.items()}

    def tuning(self) -> dict[str, Any]:
        """The settings of a search."""
        own = type(self).model_fields.keys() - EncodedIndexSettings.model_fields.keys() - self.MADE.keys()
        return {name: getattr(self, name) for name in sorted(own)}

    def open(self, progress: Progress, /) -> Retriever:
        from retrieval.encoders.indexes import build_encoded, open_encoded, read_encoded_manifest
        from retrieval.encoders.loading import open_encoder, reload_encoder

        kind = self.index_of()
        encoder = open_encoder(self.encoder) if self.encoder is not None else None
        corpus = self.to_be_made_from()
        if corpus is not None:
            if encoder is None:
                raise ConfigError(
                    f"{self.index} does not exist, and no encoder is named to make it with", "set encoder"
                )
            with progress(f"encoding {corpus}") as on_progress:
                how = {"window": self.window, "skip_bad_rows": self.skip_bad_rows, "on_progress": on_progress}
                build_encoded(kind, corpus, self.index, encoder, self.made(), **how)
        manifest = read_encoded_manifest(kind, self.index)
        self._check_made_so(manifest)
        if encoder is None:
            if manifest["encoder"]["source"] is None:
                raise ConfigError(f"{self.index} does not say where its encoder lies", "set encoder to its folder")
            encoder = reload_encoder(manifest["encoder"]["source"], manifest["encoder"]["settings"])
        return open_encoded(kind, self.index, encoder, self.tuning(), query_batch=self.query_batch)

    def _check_made_so(self, manifest: Mapping[str, Any]) -> None:
        from retrieval.encoders.indexes import rebuild_command
        from retrieval.ingest import check_source

        kind, source = self.index_of(), manifest["encoder"]["source"] or "ENCODER"
        check_source(
            self.index,
            manifest["corpus"],
            self.corpus,
            self.window,
            lambda named: rebuild_command(kind, self.index, named, source, manifest),
        )
        corpus = source_named(manifest["corpus"])
        wanted = {name: getattr(self, name) for name in self.MADE if getattr(self, name) is not None}
        how = self.applying({**manifest, **wanted})
        for name, value in wanted.items():
            if name not in how:
                raise ConfigError(f"{name} does nothing for {self.index}", f"leave {name} out")
            if value != manifest.get(name):
                raise ArtifactError(
                    f"{self.index} has the {name} {manifest.get(name)}, not {value}",
                    f"make it anew with: {rebuild_command(kind, self.index, corpus, source, how)}",
                )
