"""Settings of a retriever: what all kinds share, and where each kind's own stand. Imports nothing heavy.

In a config a retriever is the path of an index, the address of a service, or a mapping::

    retriever: runs/hotpotqa/index
    retriever: {kind: bm25, index: runs/hotpotqa/index, corpus: data/corpus.jsonl, k1: 1.2, b: 0.75}
    retriever: {kind: bm25, index: runs/wiki/index, corpus: hf://owner/name/config/split}
    retriever: {kind: bm25, index: runs/windows, corpus: data/corpus.jsonl, window: {words: 64, stride: 48}}
    retriever: {kind: dense, index: runs/dense, encoder: runs/dpr/encoder, corpus: data/corpus.jsonl, dtype: float16}
    retriever: {kind: sparse, index: runs/splade/index, encoder: runs/splade/encoder, corpus: data/corpus.jsonl}
    retriever: {kind: faiss, faiss_file: e5_Flat.index, corpus: wiki-18.jsonl, encoder: {backbone: intfloat/e5-base-v2}}
    retriever: {kind: lucene, index: lucene-index.wiki}
    retriever: {kind: hybrid, parts: [runs/bm25, runs/dense], fusion: rrf}
    retriever: {kind: rerank, model: runs/cross-encoder, inner: {kind: hybrid, parts: [a, b]}, depth: 50}
    retriever: {kind: rewrite, policy: {model: Qwen/Qwen3-4B}, inner: runs/bm25}
    retriever: {kind: remote, url: "http://127.0.0.1:8000"}, or the URL alone
    retriever: {kind: "my_package.module:Class", options: {url: "http://..."}}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ByteSize, Field, SerializeAsAny

from retrieval.windows_config import WindowSettings
from sleuth.artifacts import MANIFEST, read_manifest
from sleuth.errors import ArtifactError, DataError, did_you_mean
from sleuth.files import local_or_hub, on_hub
from sleuth.kinds import KindSettings
from sleuth.protocols import Retriever
from sleuth.settings import Size

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def _as_named(value: object) -> object:
    return local_or_hub(value) if isinstance(value, str | Path) else value


Corpus = Annotated[str, BeforeValidator(_as_named)]
"""Path of a corpus, or the name of a dataset of the hub."""

Progress = Callable[[str], AbstractContextManager[Callable[[int], None] | None]]
"""Shows progress under a title while an index is made; see `retrieval.progress`."""


class RetrieverSettings(KindSettings):
    """What to search, and how patient to be with it. Validating gives the settings of the kind that is named."""

    NOUN: ClassVar[str] = "retriever"
    SAVED_TOGETHER: ClassVar[bool] = True
    KINDS: ClassVar[Mapping[str, str]] = {
        "bm25": "retrieval.bm25_config:BM25Settings",
        "dense": "retrieval.dense.config:DenseSettings",
        "sparse": "retrieval.sparse.config:SparseSettings",
        "multivector": "retrieval.multivector.config:MultiVectorSettings",
        "promptreps": "retrieval.promptreps.config:PromptRepsSettings",
        "faiss": "retrieval.dense.config:FaissSettings",
        "lucene": "retrieval.lucene_config:LuceneSettings",
        "hybrid": "retrieval.combine.config:HybridSettings",
        "rerank": "retrieval.combine.config:RerankSettings",
        "remote": "retrieval.service.config:RemoteSettings",
        # It joins a retriever with a policy, which packages beside each other may not: it stands above both.
        "rewrite": "workflows.rewriting_config:RewriteSettings",
    }
    OUTSIDE: ClassVar[str] = "retrieval.outside_config:OutsideSettings"
    FORMER: ClassVar[Mapping[str, object]] = {"index_type": "flat", "dtype": "float32"}
    KEPT_IN_A_PART: ClassVar[frozenset[str]] = frozenset()
    """Settings that all kinds share which mean something even to a part of another retriever."""

    cache: Annotated[int, Field(ge=0)] = 10_000
    """Queries whose hits are kept in memory, at most; 0 keeps none."""
    cache_bytes: Size = ByteSize(256 * 2**20)
    """Memory for those hits, passages included: ``256MiB``, or a number of bytes. 0 keeps none; null: no bound."""
    timeout_s: Positive | None = None
    """Seconds that one search may take; None: 30, and 900 where a reranker reads every pair."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Further attempts after a failed one."""
    backoff_s: NotNegative = 0.2
    """Pause before the first retry; it doubles each time, with jitter."""
    breaker_failures: Count = 5
    """Failed attempts in a row after which searches fail at once."""
    breaker_cooldown_s: NotNegative = 10.0
    """Seconds after which one search is let through to see whether the retriever is back."""

    def open(self, progress: Progress, /) -> Retriever:
        """The bare retriever. Raises ArtifactError or ConfigError. Every kind has its own."""
        raise NotImplementedError

    @property
    def inside(self) -> Sequence[RetrieverSettings]:
        """The retrievers that this one is made of."""
        return ()

    @property
    def name(self) -> str:
        """What people know it by."""
        return self.kind

    @property
    def patience_s(self) -> float:
        """Seconds that one search may take."""
        return self.timeout_s or self.usual_patience_s

    @property
    def usual_patience_s(self) -> float:
        return max((part.usual_patience_s for part in self.inside), default=30.0)

    @property
    def at_hand(self) -> bool:
        """Whether it searches here: long work waits for it as long as it takes, without timeout or retries."""
        return bool(self.inside) and all(part.at_hand for part in self.inside)

    @property
    def most_hits(self) -> int | None:
        """How many hits of a query it orders; None where nothing but its passages limits them."""
        return None

    def check_files(self, out: Path) -> None:
        """Raise ArtifactError or DataError for what is missing. What lies under ``out`` may yet be made."""
        for part in self.inside:
            part.check_files(out)

    @classmethod
    def spelled_out(cls, value: Any) -> Any:
        if isinstance(value, str) and value.startswith(("http://", "https://")):
            return {"kind": "remote", "url": value}
        values = {"index": value} if isinstance(value, str | Path) else value
        if not isinstance(values, Mapping) or values.get("kind") is not None:
            return values
        if not values.get("index") and all(map(cls._known, values)):
            meant = [kind for kind in cls.KINDS if cls._has_all(kind, values)]
            raise ValueError(
                f"kind is missing: these are settings of kind {', '.join(meant)}"
                if meant
                else "index is missing: the folder to search"
            )
        return {**values, "kind": cls._kind_of(values)}

    @classmethod
    def _kind_of(cls, values: Mapping[str, Any]) -> str:
        """What the index says it is; of one that is not made yet, the kind of its encoder, or else the first that
        knows all these settings."""
        index = values.get("index")
        if index and isinstance(index, str | Path) and Path(index).exists():
            return index_kind(index)
        indexed, encoder = index_kinds(), values.get("encoder")
        fitting = [kind for kind, own in indexed.items() if cls.foreign(own, values) is None] or [next(iter(indexed))]
        if encoder is None:
            cls._refuse_fusion(indexed[fitting[0]], values)
            return fitting[0]
        from retrieval.encoders.config import EncoderKind

        spelled = EncoderKind.spelled_out(encoder)
        kind = spelled.get("kind") if isinstance(spelled, Mapping) else None
        return str(kind) if kind in fitting else fitting[0]

    @classmethod
    def _refuse_fusion(cls, own: type[RetrieverSettings], values: Mapping[str, Any]) -> None:
        """No kind is guessed from settings that a hybrid has and that an index which fuses its own parts has too.

        Configs of before named no kind, and held the settings of all: they can be told by a hybrid without parts.
        """
        if "parts" in values and not values["parts"]:
            return
        fused, shared = cls._load(cls.KINDS["hybrid"]).model_fields, RetrieverSettings.model_fields
        ours = () if "fusion" in own.model_fields else own.model_fields
        name = next((name for name in values if name in fused and name not in shared and name not in ours), None)
        if name is not None:
            raise ValueError(f"kind is missing, and {name} is a setting of both promptreps and hybrid")

    @classmethod
    def _has_all(cls, kind: str, values: Mapping[str, Any]) -> bool:
        """Whether these are settings of ``kind``, and all that it needs."""
        own = cls._load(cls.KINDS[kind])
        needed = [name for name, field in own.model_fields.items() if field.is_required()]
        return cls.foreign(own, values) is None and all(values.get(name) for name in needed)


AnyRetriever = SerializeAsAny[RetrieverSettings]
"""A retriever of any kind as a field of other settings."""


class IndexedSettings(RetrieverSettings):
    """A kind whose index is a folder with a manifest that names the kind."""

    index: Path
    """Folder of the index."""
    corpus: Corpus | None = None
    """Passages that the index is made from when it does not exist; an index of other passages is refused."""
    window: WindowSettings | None = None
    """Each passage is cut into such windows when the index is made; an index of others is refused.

    None: whole passages where a corpus is named, else as the index has it.
    """
    skip_bad_rows: bool = False
    """Rows that are no passages are left out when the index is made."""

    @property
    def name(self) -> str:
        return str(self.index)

    @property
    def at_hand(self) -> bool:
        return True

    def to_be_made_from(self) -> str | None:
        """The passages that the index is still to be made from; None where it is made. Raises ArtifactError."""
        if self.corpus is not None and not self.index.exists():
            return self.corpus
        found = index_kind(self.index)
        if found != self.kind:
            raise ArtifactError(f"{self.index} is an index of kind {found}, not {self.kind}", "leave kind out")
        return None

    def check_files(self, out: Path) -> None:
        if self.index.exists():
            return
        if self.corpus is None and out not in self.index.parents:
            raise ArtifactError(f"no index at {self.index}", f"make it with: sleuth index CORPUS --out {self.index}")
        if self.corpus is None or on_hub(self.corpus):
            return
        if not Path(self.corpus).exists() and out not in Path(self.corpus).parents:
            raise DataError(f"no corpus at {self.corpus}", "retriever.corpus is a file of passages")


def index_kinds() -> dict[str, type[RetrieverSettings]]:
    """The kinds that have an index of their own."""
    classes = {kind: RetrieverSettings.class_for({"kind": kind}) for kind in RetrieverSettings.KINDS}
    return {kind: own for kind, own in classes.items() if issubclass(own, IndexedSettings)}


def index_kind(index: str | Path) -> str:
    """The kind that the manifest of ``index`` names. Raises ArtifactError where it names none."""
    path = Path(index)
    rebuild = f"sleuth index CORPUS --out {index}"
    if path.is_file():
        raise ArtifactError(f"{index} is a file, not an index", f"if it is a corpus: sleuth index {index} --out FOLDER")
    if not (path / MANIFEST).is_file():
        read_manifest(path, "index", rebuild)  # raises, and says what is missing
    try:
        kind = str(json.loads((path / MANIFEST).read_text(encoding="utf-8"))["kind"])
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(f"{path / MANIFEST} is damaged", f"make it anew with: {rebuild}") from None
    if kind not in index_kinds():
        raise ArtifactError(f"{index} is of kind '{kind}', which is no index", did_you_mean(kind, index_kinds()))
    return kind
