"""Builds observations within a token budget from our own text and outside text.

Every piece is tokenised separately, so text across a boundary cannot combine into a special token or a tag.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from envs.grammar import neutralise
from envs.prompts import Preset
from sleuth.errors import ConfigError
from sleuth.pictures import Placed
from sleuth.protocols import SeeingCodec, TextCodec
from sleuth.types import Hit, Image, Observation

TITLE_TOKENS = 48
"""Titles are cut to this many tokens, and to a quarter of the block."""
PASSAGE_TOKENS = 8
"""A passage is shown only if at least this many tokens of its text fit."""
CHARACTERS_PER_TOKEN = 24
"""Characters per budgeted token beyond which text is not even tokenised. Prose has 3 to 5 characters per
token; a text that averages more than 24 shows fewer tokens than it could, in exchange for bounded time."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A span of text with its token ids; ``passage``: the id of the passage whose text it is, if it is one's.

    ``image``: the picture that the tokens stand for; they have no text and are never cut.
    """

    text: str
    token_ids: tuple[int, ...]
    passage: str = ""
    image: Image | None = None


def trusted(codec: TextCodec, text: str) -> Piece:
    return Piece(text, tuple(codec.encode(text, trusted=True)))


def untrusted(codec: TextCodec, text: str, limit: int | None = None, before: str = "") -> Piece:
    """``before + text`` with tags and reserved strings neutralised, in at most ``limit`` tokens."""
    if limit is not None:
        text = text[: limit * CHARACTERS_PER_TOKEN]
    safe = before + neutralise(text, codec.reserved)
    piece = Piece(safe, tuple(codec.encode(safe)))
    return piece if limit is None else shorten(codec, piece, limit)


def shorten(codec: TextCodec, piece: Piece, limit: int) -> Piece:
    """The first ``limit`` tokens of an untrusted ``piece``, or up to three fewer to keep characters whole."""
    if len(piece.token_ids) <= limit:
        return piece
    token_ids = piece.token_ids[:limit]
    for length in range(limit, max(limit - 4, 0), -1):
        if not codec.decode(piece.token_ids[:length]).endswith("\ufffd"):
            token_ids = piece.token_ids[:length]
            break
    # Decoding may drop tokens without text, a neutralising mark included, so the text is neutralised again.
    return Piece(neutralise(codec.decode(token_ids), codec.reserved), token_ids, piece.passage)


def first_tokens(codec: TextCodec, pieces: Sequence[Piece], limit: int) -> list[Piece]:
    """The first ``limit`` tokens of ``pieces``, or up to three fewer, whatever is lost with the rest."""
    kept: list[Piece] = []
    for piece in pieces:
        left = limit - size(kept)
        if len(piece.token_ids) <= left:
            kept.append(piece)
            continue
        if piece.image is not None:
            break
        start = codec.decode(piece.token_ids[:left])
        # The start of a text that was safe is safe; a piece of our own would not survive being neutralised.
        exact = piece.text.startswith(start)
        kept += (
            [Piece(start, piece.token_ids[:left], piece.passage) if exact else shorten(codec, piece, left)]
            if left > 0
            else []
        )
        break
    return kept


def joined(pieces: Sequence[Piece]) -> Observation:
    token_ids: list[int] = []
    images: list[Placed] = []
    for piece in pieces:
        if piece.image is not None:
            images.append((len(token_ids), piece.image))
        token_ids += piece.token_ids
    return Observation(tuple(token_ids), "".join(piece.text for piece in pieces), tuple(images))


def size(pieces: Sequence[Piece]) -> int:
    return sum(len(piece.token_ids) for piece in pieces)


def passages_in(pieces: Sequence[Piece]) -> set[str]:
    """The ids of the passages of whose texts something is in ``pieces``."""
    return {piece.passage for piece in pieces if piece.passage}


def fill(codec: TextCodec, template: str, slots: Mapping[str, str | Sequence[Piece]]) -> list[Piece]:
    """``template`` as trusted pieces; a slot takes ready-made pieces, or outside text in full.

    A space before a slot is tokenised with the slot's text: most tokenizers join it to the word that follows.
    """
    pieces: list[Piece] = []
    before = ""
    names = "|".join(map(re.escape, slots))
    for part in re.split(rf"(\{{(?:{names})\}})", template):
        content = slots.get(part[1:-1]) if part.startswith("{") else None
        if isinstance(content, str):
            pieces.append(untrusted(codec, content, before=before))
            before = ""
        elif content is not None:
            pieces += [*([trusted(codec, before)] if before else []), *content]
            before = ""
        else:
            frame = (before + part).rstrip(" ")
            before = (before + part)[len(frame) :]
            pieces += [trusted(codec, frame)] if frame else []
    return [*pieces, trusted(codec, before)] if before else pieces


def split_budget(budget: int, wants: Sequence[int]) -> list[int]:
    """``budget`` tokens divided fairly: none gets more than it wants; longer texts get what short ones leave.

    Filling from the smallest want upwards finds the largest common cap; remaining single tokens go to the first
    texts, which are the best-ranked.
    """
    given = [0] * len(wants)
    left = max(budget, 0)
    order = sorted(range(len(wants)), key=lambda i: (wants[i], -i))
    for position, i in enumerate(order):
        given[i] = min(wants[i], left // (len(order) - position))
        left -= given[i]
    for i, want in enumerate(wants):
        extra = min(left, want - given[i], 1)
        given[i] += extra
        left -= extra
    return given


def information_block(
    codec: TextCodec, preset: Preset, hits: Sequence[Hit], budget: int, room: int
) -> list[Piece] | None:
    """The block of ``hits`` in at most ``budget`` tokens; None if it does not fit into ``room``.

    Raises ConfigError if ``budget`` itself is too small.
    """
    pieces = block_within(codec, preset, hits, min(budget, room))
    if pieces is None and room >= budget:
        raise ConfigError(
            f"observation_tokens ({budget}) is too small for one passage", "200 to 600 suits most policies"
        )
    return pieces


def cut_block(codec: TextCodec, preset: Preset, hits: Sequence[Hit], budget: int, room: int) -> list[Piece] | None:
    """The first ``budget`` tokens of the block with all ``hits`` in full; None if these do not fit into ``room``."""
    heads = [_head(codec, preset, i + 1, hit, budget) for i, hit in enumerate(hits)]
    bodies = [_text(codec, preset, hit, budget) for hit in hits]
    inner = _interleave(heads, bodies, trusted(codec, preset.separator)) or [trusted(codec, preset.nothing_found)]
    pieces = first_tokens(codec, [trusted(codec, preset.opening), *inner, trusted(codec, preset.closing)], budget)
    return pieces if size(pieces) <= room else None


def block_within(
    codec: TextCodec, preset: Preset, hits: Sequence[Hit], limit: int, first: int = 1
) -> list[Piece] | None:
    """The block of ``hits``, numbered from ``first``, in at most ``limit`` tokens; None if it does not fit.

    Frame and titles in full, texts sharing the rest; only the best-ranked passages if not all fit.
    """
    if not hits:
        return message_block(codec, preset, preset.nothing_found, limit)
    opening, closing = trusted(codec, preset.opening), trusted(codec, preset.closing)
    texts = [_text(codec, preset, hit, limit) for hit in hits]
    longest = min(TITLE_TOKENS, max(limit // 4, 1))
    heads = [_head(codec, preset, first + i, hit, longest) for i, hit in enumerate(hits)]
    separator = trusted(codec, preset.separator)
    for count in range(len(hits), 0, -1):
        frame = size([opening, closing, *(p for head in heads[:count] for p in head)])
        left = limit - frame - (count - 1) * len(separator.token_ids)
        wants = [len(text.token_ids) for text in texts[:count]]
        if left >= sum(min(want, PASSAGE_TOKENS) for want in wants):
            bodies = [shorten(codec, text, n) for text, n in zip(texts, split_budget(left, wants), strict=False)]
            return [opening, *_interleave(heads, bodies, separator), closing]
    return None


def message_block(codec: TextCodec, preset: Preset, text: str, limit: int) -> list[Piece] | None:
    """Our own ``text`` in the place of passages, in full; None if it is longer than ``limit`` tokens."""
    pieces = [trusted(codec, part) for part in (preset.opening, text, preset.closing)]
    return pieces if size(pieces) <= limit else None


def returned_block(codec: TextCodec, preset: Preset, text: str, limit: int) -> list[Piece] | None:
    """What a tool returned, between the preset's opening and closing, in at most ``limit`` tokens; None if even
    its first few do not fit.
    """
    opening, closing = trusted(codec, preset.opening), trusted(codec, preset.closing)
    left = limit - size([opening, closing])
    if left < PASSAGE_TOKENS:
        return None
    return [opening, untrusted(codec, text.strip() or "(nothing)", left), closing]


def _text(codec: TextCodec, preset: Preset, hit: Hit, limit: int) -> Piece:
    """What is read of a passage: its text, or nothing where the policy sees its picture."""
    if _seen(codec, hit) is not None:
        return Piece("", (), hit.passage.id)
    before = " " if preset.passage.endswith(" {text}") else ""
    piece = untrusted(codec, hit.passage.text.strip(), max(limit, 1), before)
    return replace(piece, passage=hit.passage.id)


def _head(codec: TextCodec, preset: Preset, number: int, hit: Hit, longest: int) -> list[Piece]:
    """The pieces of a passage before its text: a title of up to ``longest`` tokens, on one line, and its picture, where
    the policy sees.
    """
    image = _seen(codec, hit)
    seen = [Piece("", tuple(image[0].look(image[1])), hit.passage.id, image[1])] if image else []
    template = preset.passage.replace("{number}", str(number)).removesuffix("{text}").rstrip(" ")
    head, slot, tail = template.partition("{title}")
    if not slot:
        return [*([trusted(codec, template)] if template else []), *seen]
    title = " ".join(hit.passage.title[: longest * CHARACTERS_PER_TOKEN].split())
    before = " " if head.endswith(" ") else ""
    return [
        trusted(codec, head.removesuffix(" ")),
        untrusted(codec, title, longest, before),
        trusted(codec, tail),
        *seen,
    ]


def _seen(codec: TextCodec, hit: Hit) -> tuple[SeeingCodec, Image] | None:
    """Who looks at the passage's picture, and at what; None where its text is read, as where no bytes are at hand."""
    image = hit.passage.image
    if image is None or image.content is None or not isinstance(codec, SeeingCodec):
        return None
    return codec, image


def _interleave(heads: Sequence[Sequence[Piece]], bodies: Sequence[Piece], separator: Piece) -> list[Piece]:
    pieces: list[Piece] = []
    for i, body in enumerate(bodies):
        pieces += [*([separator] if i else []), *heads[i], body]
    return pieces
