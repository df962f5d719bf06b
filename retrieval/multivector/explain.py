"""Which token of a query met which token of a passage, or which part of its picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hub.pictures import decode
from retrieval.encoders.config import Role
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.family import PassageEncoder
from retrieval.encoders.inputs import Input, Seen
from retrieval.multivector.patches import Box, boxes_of
from retrieval.multivector.tokens import Vectors
from sleuth.errors import ConfigError
from sleuth.explanations import Contribution, Explanation
from sleuth.types import Passage


def explain(encoder: PassageEncoder, query: str, passages: Sequence[Passage]) -> list[Explanation]:
    """For each of ``passages`` the token that is most similar to each of the query's, largest similarity first.

    Similarities are those of the encoder's own vectors: an index that compresses them scores a little differently.
    Raises ConfigError for an encoder of another package, whose tokens are not known.
    """
    if not isinstance(encoder, Encoder):
        raise ConfigError("an encoder of another package does not tell its tokens", "leave --explain out")
    asked = _tokens(encoder, query, "query")
    found = []
    for given in encoder.inputs_of(passages):
        its = _tokens(encoder, given, "passage")
        products = asked.vectors @ its.vectors.T
        parts = [
            Contribution(word, its.words[place], float(row[place]), its.boxes[place])
            for word, row, place in zip(asked.words, products, products.argmax(1).tolist(), strict=True)
        ]
        found.append(Explanation(tuple(sorted(parts, key=lambda part: -part.score))))
    return found


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The tokens that count: their vectors [tokens, dimension], their names, and where on a picture they are."""

    vectors: Vectors
    words: list[str]
    boxes: list[Box | None]


def _tokens(encoder: Encoder, given: Input, role: Role) -> _Tokens:
    encoded = encoder.encode_inputs([given], role)
    assert encoded.mask is not None
    mask = encoded.mask[0]
    features = encoder.features([given], role)
    ids = features["input_ids"][0]
    boxes: list[Box | None] = [None] * len(ids)
    if isinstance(given, Seen):
        first = next(iter(encoder.tower(role).children()))
        boxes = boxes_of(first, decode(given.image).size, features)
    kept = mask.nonzero()[:, 0].tolist()
    words = encoder.model.tokenizer.convert_ids_to_tokens(ids[mask].tolist())
    named = [str(word) if boxes[at] is None else _place(boxes[at]) for word, at in zip(words, kept, strict=True)]
    vectors: Vectors = encoded.values[0][mask].numpy()
    return _Tokens(vectors, named, [boxes[at] for at in kept])


def _place(box: Box | None) -> str:
    assert box is not None
    return f"patch at {box[0]}, {box[1]}"
