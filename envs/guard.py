"""Keeps outside text from forging the tags with which a prompt of one's own encloses passages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs.prompts import Preset
from sleuth.protocols import SeeingCodec, TextCodec
from sleuth.reserved import ALL_TAGS
from sleuth.types import Image

_TAG = re.compile(r"</?([^<>\s/]+)>")


def guarded(codec: TextCodec, preset: Preset, tags: Sequence[str] = ()) -> TextCodec:
    """``codec``, which also reserves the tags that the grammar does not know: those around the preset's passages, and
    those named ``tags``, of one's own tools.
    """
    around = preset.opening + preset.separator + preset.closing
    own = frozenset(tag[0] for tag in _TAG.finditer(around) if tag[1] not in ALL_TAGS)
    own |= {f"<{slash}{tag}>" for tag in tags if tag not in ALL_TAGS for slash in ("", "/")}
    if not own:
        return codec
    kind = _SeeingGuarded if isinstance(codec, SeeingCodec) else _Guarded
    return kind(codec, codec.reserved | own, codec.bos, codec.eos_token_id, codec.end_token_ids, codec.pad_token_id)


@dataclass(slots=True)
class _Guarded:
    codec: TextCodec
    reserved: frozenset[str]
    bos: str
    eos_token_id: int
    end_token_ids: tuple[int, ...]
    pad_token_id: int

    def encode(self, text: str, *, trusted: bool = False) -> list[int]:
        return self.codec.encode(text, trusted=trusted)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.codec.decode(token_ids)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None = None
    ) -> str | None:
        return self.codec.render_chat(messages, variables)


class _SeeingGuarded(_Guarded):
    def look(self, image: Image) -> Sequence[int]:
        assert isinstance(self.codec, SeeingCodec)
        return self.codec.look(image)
