"""Which token of a query met which token of a passage."""

from __future__ import annotations

from collections.abc import Sequence

from retrieval.encoders.config import Role
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.family import PassageEncoder
from retrieval.multivector.tokens import Vectors
from retrieval.passages import passage_text
from sleuth.errors import ConfigError
from sleuth.types import Contribution, Explanation, Passage


def explain(encoder: PassageEncoder, query: str, passages: Sequence[Passage]) -> list[Explanation]:
    """For each of ``passages`` the token that is most similar to each of the query's, largest similarity first.

    Similarities are those of the encoder's own vectors: an index that compresses them scores a little differently.
    Raises ConfigError for an encoder of another package, whose tokens are not known.
    """
    if not isinstance(encoder, Encoder):
        raise ConfigError("an encoder of another package does not tell its tokens", "leave --explain out")
    asked, words = _tokens(encoder, query, "query")
    found = []
    for passage in passages:
        vectors, its_words = _tokens(encoder, passage_text(passage), "passage")
        products = asked @ vectors.T
        parts = [
            Contribution(word, its_words[place], float(row[place]))
            for word, row, place in zip(words, products, products.argmax(1).tolist(), strict=True)
        ]
        found.append(Explanation(tuple(sorted(parts, key=lambda part: -part.score))))
    return found


def _tokens(encoder: Encoder, text: str, role: Role) -> tuple[Vectors, list[str]]:
    """The vectors that count [tokens, dimension], and the tokens that they are of."""
    encoded = encoder.encode_texts([text], role)
    assert encoded.mask is not None
    mask = encoded.mask[0]
    numbers = encoder.features([text], role)["input_ids"][0][mask].tolist()
    vectors: Vectors = encoded.values[0][mask].numpy()
    return vectors, [str(token) for token in encoder.model.tokenizer.convert_ids_to_tokens(numbers)]
