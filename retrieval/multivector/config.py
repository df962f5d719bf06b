"""Token vectors: exact, as residuals to centroids, or behind vectors of fixed dimension; settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from retrieval.config import Count
from retrieval.encoders.index_config import EncodedIndexSettings
from sleuth.plugins import load_object

NotNegative = Annotated[int, Field(ge=0)]


class MultiVectorSettings(EncodedIndexSettings):
    """None: as the index has it, and for a new one what its type has; settings of another type are refused."""

    INDEX: ClassVar[str] = "retrieval.multivector.retriever:MULTIVECTOR_INDEX"
    MADE: ClassVar[Mapping[str, object]] = {
        "index_type": "flat",
        "pool_factor": None,
        **dict.fromkeys(["dtype", "bits", "centroids"]),
        **dict.fromkeys(["repetitions", "k_sim", "d_proj", "fixed_dtype", "fixed_type", "seed"]),
    }

    kind: Literal["multivector"] = "multivector"
    index_type: Literal["flat", "residual", "muvera"] | None = None
    dtype: Literal["float32", "float16"] | None = None
    """flat, muvera: of the token vectors. [float32]"""
    pool_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """So many times fewer vectors a passage: similar ones become their mean. [1]"""
    bits: Literal[1, 2, 4, 32] | None = None
    """residual: of a number of a residual; 32: residuals as they are. [2]"""
    centroids: Count | None = None
    """residual: [4 times the square root of the number of token vectors]"""
    repetitions: Count | None = None
    """muvera: [20]"""
    k_sim: Annotated[int, Field(ge=1, le=10)] | None = None
    """muvera: planes of a repetition, which make 2 to the power of them cells. [5]"""
    d_proj: Count | None = None
    """muvera: dimensions of a cell. [32]"""
    fixed_dtype: Literal["float32", "float16", "int8"] | None = None
    """muvera: of the vectors of fixed dimension. [int8]"""
    fixed_type: Literal["flat", "hnsw", "ivfpq"] | None = None
    """muvera: how they are searched. [flat]"""
    seed: NotNegative | None = None
    """residual, muvera: of the sample and its centroids, of the planes. [0]"""
    nprobe: Count | None = None
    """residual: centroids that each token of a query looks at. [4]"""
    candidates: Count | None = None
    """residual, muvera: passages whose token vectors are compared. [256; muvera 128]"""

    @classmethod
    def applying(cls, how: Mapping[str, Any]) -> Mapping[str, Any]:
        own: set[str] = load_object("retrieval.multivector.retriever:shaping")(how["index_type"])
        return {name: value for name, value in how.items() if name not in cls.MADE or name in own}
