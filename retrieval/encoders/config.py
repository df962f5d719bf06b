"""Settings of an encoder: what its weights need to give the vectors they were trained to give. No torch here.

In a config an encoder is a folder or hub name, or a mapping whose ``backbone`` is one and whose other keys replace
what its folder says::

    encoder: runs/dpr/encoder
    encoder: {backbone: intfloat/e5-base-v2, query_prompt: "query: ", passage_prompt: "passage: "}
    encoder: {backbone: facebook/contriever, pooling: mean}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, SerializeAsAny, model_validator

from sleuth.artifacts import MANIFEST
from sleuth.errors import ConfigError, did_you_mean
from sleuth.kinds import KindSettings
from sleuth.query_forms import QueryForm
from sleuth.settings import Count, Settings, validate

Role = Literal["query", "passage"]
Pooling = Literal["cls", "mean", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean", "other"]
Similarity = Literal["dot", "cosine"]
Towers = Literal["shared", "separate"]
WeightDtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["own", "bidirectional"]
Reads = Literal["text", "image", "both"]
Tokens = Annotated[int, Field(ge=3)]
Dimensions = Annotated[int, Field(ge=1)]

_PLACEHOLDER = re.compile(r"\{\w*\}")


def _no_placeholder(prompt: str) -> str:
    found = _PLACEHOLDER.search(prompt)
    if found:
        raise ValueError(f"the prompt still holds the placeholder {found[0]}; write the text that stands there")
    return prompt


Prompt = Annotated[str, AfterValidator(_no_placeholder)]


class EncoderKind(KindSettings):
    """An encoder as a config names it. Validating gives the settings of its family."""

    NOUN: ClassVar[str] = "encoder"
    KINDS: ClassVar[Mapping[str, str]] = {
        "dense": "retrieval.encoders.config:DenseChoice",
        "sparse": "retrieval.encoders.sparse_config:SparseChoice",
        "multivector": "retrieval.encoders.multivector_config:MultiVectorChoice",
        "promptreps": "retrieval.promptreps.config:PromptRepsChoice",
    }
    OUTSIDE: ClassVar[str] = "retrieval.encoders.config:OutsideEncoderSettings"
    LOADER: ClassVar[str]
    """Dotted path of what loads an encoder of this family from its settings: `retrieval.encoders.loading` calls it."""

    @classmethod
    def spelled_out(cls, value: Any) -> Any:
        if isinstance(value, str) and is_dotted(value):
            return {"kind": value}
        values = {"backbone": value} if isinstance(value, str) else value
        if not isinstance(values, Mapping) or values.get("kind") is not None:
            return values
        return {**values, "kind": family_of(str(values.get("backbone")))}


AnyEncoder = SerializeAsAny[EncoderKind]
"""An encoder of any family as a field of other settings."""


def is_dotted(name: str) -> bool:
    """Whether ``name`` is of the form ``package.module:Class``."""
    return re.fullmatch(r"[\w.]+:\w+", name) is not None


_OF_THE_LIBRARY = {
    "SentenceTransformer": "dense",
    "SparseEncoder": "sparse",
    "MultiVectorEncoder": "multivector",
    "ColBERT": "multivector",
}
"""sentence-transformers' classes, as its folders and PyLate's name them, and their families here."""
_RERANKER = "CrossEncoder"
_LATE = "ForRetrieval"
"""How transformers' own late-interaction models end: ColPali, ColQwen2, ColModernVBert."""
_STANFORDS = "HF_ColBERT"
"""The architecture of Stanford's ColBERT checkpoints, which sentence-transformers loads too."""


def family_of(folder: str) -> str:
    """The family that an encoder's folder names, one of ours or of the field's; dense where none does."""
    return named_family(folder) or "dense"


def named_family(folder: str) -> str | None:
    """The same; None for weights that are no encoder yet, for a reranker, and for what is not a folder."""
    root = Path(folder)
    try:
        if (root / MANIFEST).is_file():
            return str(json.loads((root / MANIFEST).read_text(encoding="utf-8"))["settings"]["kind"])
        if (root / "config_sentence_transformers.json").is_file():
            content = json.loads((root / "config_sentence_transformers.json").read_text(encoding="utf-8"))
            kind = content["model_type"]
            return None if kind == _RERANKER else _OF_THE_LIBRARY.get(kind, "dense")
        named = json.loads((root / "config.json").read_text(encoding="utf-8")).get("architectures") or []
        return "multivector" if any(name == _STANFORDS or name.endswith(_LATE) for name in named) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # what is wrong is said when it is loaded
        return None


class OutsideEncoderSettings(EncoderKind):
    """``kind`` is ``package.module:Class``; what the class needs is described in `retrieval.encoders.outside`."""

    LOADER: ClassVar[str] = "retrieval.encoders.outside:open_outside"

    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class."""


class ExpansionSettings(Settings):
    """Passages get the strongest terms that a sparse encoder gives them and that they lack, before they are encoded."""

    encoder: str
    """A trained encoder with the head splade."""
    terms: Count = 20
    """At most so many, and no more than half of the tokens that a passage may have."""
    pieces: bool = False
    """Pieces of words too, appended as tokens: both encoders need the same vocabulary. Else whole words, as text."""


class EncoderSettings(Settings):
    """How text is encoded, in every family. Saved with the weights and read back by everything."""

    kind: str
    backbone: str
    """Folder or hub name that the weights started from: a transformers or sentence-transformers model."""
    query_prompt: Prompt = ""
    passage_prompt: Prompt = ""
    """Put before every query or passage, white space included."""
    query_max_tokens: Tokens = 64
    passage_max_tokens: Tokens = 256
    """Longer texts are cut; prompt, special tokens and EOS count. A picture is whole: its tokens do not count, and a
    text beside it is cut by itself. A new encoder's are no more than its model reads, unless they are named."""
    append_eos: bool = False
    """End every text in EOS, after cutting to one token less."""
    towers: Towers = "shared"
    attention: Attention = "own"
    """bidirectional: a decoder's states depend on later tokens too (LLM2Vec); own: as the backbone has it."""
    dtype: WeightDtype = "float32"
    """Of the weights; what they give is float32 in any case."""
    query_form: QueryForm = "query"
    """What of an agent's search is read: the query alone, or with its question or the last thought behind it."""
    reads: Reads = "text"
    """What is read of a passage that has a picture: its text, the picture, or both together. Of one without a picture
    the text is read in any case."""

    def prompt(self, role: Role) -> str:
        return self.query_prompt if role == "query" else self.passage_prompt

    def max_tokens(self, role: Role) -> int:
        return self.query_max_tokens if role == "query" else self.passage_max_tokens

    @property
    def unit_length(self) -> bool:
        """Whether vectors have length 1, also where they are cut."""
        return False

    @property
    def width(self) -> int | None:
        """Numbers of a vector that are kept; None: all."""
        return None

    @property
    def comparison(self) -> str:
        """How queries and passages are compared."""
        return self.kind

    @property
    def expands(self) -> ExpansionSettings | None:
        """What adds terms to passages before they are encoded."""
        return None

    @property
    def decisive(self) -> list[object]:
        """What of a family's own settings determines the values of a text; part of every fingerprint."""
        raise NotImplementedError


class DenseEncoderSettings(EncoderSettings):
    """How text becomes one vector."""

    kind: Literal["dense"] = "dense"
    pooling: Pooling = "mean"
    """State(s) of the last layer that become the vector; other: what only sentence-transformers knows."""
    normalise: bool = False
    """L2-normalise, so that dot product and cosine agree."""
    similarity: Similarity = "dot"
    """cosine: vectors are normalised too, whatever ``normalise`` says."""
    include_prompt: bool = True
    """Pool the prompt's states too; false: its tokens are read, but not part of the vector (INSTRUCTOR, LLM2Vec)."""
    dimensions: Dimensions | None = None
    """Keep the first so many of a vector only: for an encoder trained with Matryoshka dimensions."""

    @property
    def unit_length(self) -> bool:
        return self.normalise or self.similarity == "cosine"

    @property
    def width(self) -> int | None:
        return self.dimensions

    @property
    def comparison(self) -> str:
        return self.similarity

    @property
    def decisive(self) -> list[object]:
        without = [] if self.include_prompt else ["without prompt"]
        return [self.pooling, self.unit_length, *([] if self.dimensions is None else [self.dimensions]), *without]


class EncoderChoice(EncoderKind):
    """An encoder that is loaded or made here, and what of its settings shall differ. None: as its folder says, or as
    a new one has it. Each family adds its own."""

    LOADER: ClassVar[str] = "retrieval.encoders.loading:load_encoder"
    ASSEMBLY: ClassVar[str]
    """Dotted path of the family's `Assembly`."""
    SETTINGS: ClassVar[type[EncoderSettings]]
    """What the choice is about, with every setting decided."""

    backbone: str
    query_prompt: Prompt | None = None
    passage_prompt: Prompt | None = None
    query_max_tokens: Tokens | None = None
    passage_max_tokens: Tokens | None = None
    append_eos: bool | None = None
    towers: Towers | None = None
    attention: Attention | None = None
    dtype: WeightDtype | None = None
    query_form: QueryForm | None = None
    reads: Reads | None = None
    device: str | None = None
    """Where it runs (cpu, cuda, cuda:1); None: a GPU, if there is one. Not a property of the weights."""

    @property
    def needs_masked_lm(self) -> bool:
        """Whether the backbone must have the head of a masked language model."""
        return False

    @property
    def chosen(self) -> dict[str, Any]:
        """What is not None, ``backbone`` too; without ``device``."""
        return self.model_dump(exclude_none=True, exclude={"device"})

    def as_new(self) -> EncoderSettings:
        """The settings of a new encoder. Raises ConfigError."""
        return validate(self.SETTINGS, self.chosen, self.backbone)


class DenseChoice(EncoderChoice):
    """One vector a text."""

    ASSEMBLY: ClassVar[str] = "retrieval.encoders.dense:DENSE_ASSEMBLY"
    SETTINGS: ClassVar[type[EncoderSettings]] = DenseEncoderSettings

    kind: Literal["dense"] = "dense"
    pooling: Pooling | None = None
    normalise: bool | None = None
    similarity: Similarity | None = None
    include_prompt: bool | None = None
    dimensions: Dimensions | None = None


class ScratchSettings(Settings):
    """A backbone with random weights and a tokenizer of its own, made from a corpus."""

    family: Literal["bert", "llama"] = "bert"
    vocabulary: Annotated[int, Field(ge=64)] = 8_000
    """Word pieces at most."""
    vocabulary_file: Path | None = None
    """Word pieces of one's own, one a line, ``##`` before those within a word; none is learnt then."""
    hidden_size: Annotated[int, Field(ge=8)] = 128
    layers: Annotated[int, Field(ge=1)] = 2
    heads: Annotated[int, Field(ge=1)] = 4
    max_positions: Annotated[int, Field(ge=8)] = 512
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """BERT's, hidden and attention; a Llama has none."""
    masked_lm: bool | None = None
    """With the head of a masked language model, BERT only; None: where the encoder weighs words by it."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ScratchSettings:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of heads {self.heads}")
        if self.masked_lm and self.family != "bert":
            raise ValueError(f"masked_lm does nothing for a {self.family}; choose family bert")
        return self


def instruct_prompt(task: str) -> str:
    """E5's query prompt for a task described in one sentence (Wang et al. 2024, Improving Text Embeddings)."""
    return f"Instruct: {task}\nQuery: "


PRESETS: dict[str, dict[str, Any]] = {
    "plain": {"pooling": "mean", "normalise": True, "similarity": "cosine"},
    # Karpukhin et al. 2020: two BERTs, [CLS], inner product
    "dpr": {"pooling": "cls", "towers": "separate", "similarity": "dot", "passage_max_tokens": 256},
    # Ma et al. 2023, as Tevatron trains it
    "repllama": {
        "pooling": "lasttoken",
        "query_prompt": "query: ",
        "passage_prompt": "passage: ",
        "append_eos": True,
        "normalise": True,
        "similarity": "cosine",
        "query_max_tokens": 32,
        "passage_max_tokens": 196,
    },
    # BehnamGhader et al. 2024: a decoder that reads in both directions, mean pooling without the instruction
    "llm2vec": {
        "pooling": "mean",
        "attention": "bidirectional",
        "include_prompt": False,
        "query_prompt": instruct_prompt("Given a question, retrieve passages that answer the question"),
        "normalise": True,
        "similarity": "cosine",
        "query_max_tokens": 512,
        "passage_max_tokens": 512,
    },
    "e5_instruct": {
        "pooling": "lasttoken",
        "query_prompt": instruct_prompt("Given a web search query, retrieve relevant passages that answer the query"),
        "append_eos": True,
        "normalise": True,
        "similarity": "cosine",
        "query_max_tokens": 512,
        "passage_max_tokens": 512,
    },
    # Formal et al. 2021 (v2): maximum over the positions of the masked-LM head
    "splade": {"kind": "sparse", "head": "splade", "passage_max_tokens": 256},
    # the same without a query encoder: query tokens have learned weights (Formal et al. 2021; Geng et al. 2024)
    "splade_doc": {"kind": "sparse", "head": "splade", "queries": "learned", "passage_max_tokens": 256},
    # Lin and Ma 2021
    "unicoil": {"kind": "sparse", "head": "unicoil", "passage_max_tokens": 256},
    # Mallia et al. 2021: query words weigh 1
    "deepimpact": {"kind": "sparse", "head": "deepimpact", "queries": "tokens", "passage_max_tokens": 256},
    # Khattab and Zaharia 2020
    "colbert": {
        "kind": "multivector",
        "query_prompt": "[Q] ",
        "passage_prompt": "[D] ",
        "query_max_tokens": 32,
        "passage_max_tokens": 180,
    },
}


def preset(name: str, backbone: str, **changes: Any) -> EncoderSettings:
    """The settings of a published recipe on ``backbone``. Raises ConfigError for an unknown name."""
    if name not in PRESETS:
        raise ConfigError(f"no encoder preset '{name}'", did_you_mean(name, PRESETS))
    chosen = EncoderKind.of(**{"kind": "dense", "backbone": backbone, **PRESETS[name], **changes})
    assert isinstance(chosen, EncoderChoice)
    return chosen.as_new()
