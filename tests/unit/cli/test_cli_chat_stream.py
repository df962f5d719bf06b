"""Streaming: whatever the tokens and chunks, the same text and the same spans."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agent.codec import HFCodec
from agent.tiny import make_tokenizer
from cli.chat.stream import Span, TagStream, TokenText
from envs.grammar import TAGS, parse_turn
from sleuth.types import Answer, Search


def _bytes() -> HFCodec:
    """One token a byte, as byte-level BPE falls back to: characters are spread over up to four tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return HFCodec(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>"))


def _pieces() -> HFCodec:
    """As sentencepiece: a mark for spaces, the first of which is dropped, and bytes as a fallback."""
    words = ["▁", "▁the", "a", "b", "é", "▁<", "/", "search", ">", *(f"<0x{b:02X}>" for b in range(256))]
    core = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return HFCodec(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>"))


def _words() -> HFCodec:
    """The tiny policy's own: words are joined by the decoder, punctuation to what is before it."""
    return HFCodec(make_tokenizer(["what", "it", "##s", "Paris", "##ian", "'", ",", ".", "?"], 64))


CODECS = {"bytes": _bytes(), "pieces": _pieces(), "words": _words()}
PIECES = st.sampled_from([f"<{slash}{name}>" for name in TAGS for slash in ("", "/")])
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=4), st.sampled_from(["<", "</", ">", "sear", "<<answer"]))).map(
    "".join
)


def _in_bytes(char: str) -> list[int]:
    ids: list[int] = CODECS["pieces"].tokenizer.convert_tokens_to_ids([f"<0x{b:02X}>" for b in char.encode()])
    return ids


IDS = {
    "bytes": st.lists(st.integers(0, 256), max_size=30),
    "words": st.lists(st.integers(0, len(CODECS["words"].tokenizer) - 1), max_size=30),
    # Whole characters: one bad byte makes this decoder give up the good ones before it, shown or not.
    "pieces": st.lists(st.integers(0, 8).map(lambda i: [i]) | st.characters(codec="utf-8").map(_in_bytes)).map(
        lambda parts: [token for part in parts for token in part]
    ),
}


@pytest.mark.parametrize("name", CODECS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_tokens_give_the_text_of_all_of_them(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]
    ids = data.draw(IDS[name])
    stream = TokenText(codec.decode)
    parts = [stream.feed(token) for token in ids]
    assert "".join(parts) + stream.finish() == codec.decode(ids)
    assert stream.finish() == ""


@given(st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=20))
@example("é€😀")
@settings(deadline=None)
def test_a_character_spread_over_tokens_comes_whole(text: str) -> None:
    codec = CODECS["bytes"]
    stream = TokenText(codec.decode)
    parts = [stream.feed(token) for token in codec.encode(text)]
    assert "".join(parts) == text
    assert [part for part in parts if part] == list(text)


def merged(spans: list[Span]) -> list[Span]:
    """Neighbouring texts of one place as one."""
    out: list[Span] = []
    for span in spans:
        if out and span.kind == "text" == out[-1].kind and out[-1].inside == span.inside:
            span = Span("text", span.inside, out.pop().text + span.text)
        out.append(span)
    return out


def spans_of(chunks: list[str]) -> list[Span]:
    stream = TagStream()
    return merged([span for chunk in chunks for span in stream.feed(chunk)] + stream.finish())


@given(TEXTS, st.data())
@settings(max_examples=300, deadline=None)
def test_spans_do_not_depend_on_the_chunks(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    chunks = [text[a:b] for a, b in pairwise(cuts)]
    spans = spans_of(chunks)
    assert "".join(span.text for span in spans) == text
    assert spans == spans_of([text]) == spans_of(list(text))
    assert all(span.text for span in spans)


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_what_is_shown_last_is_what_the_turn_means(text: str) -> None:
    action = parse_turn(text)
    if isinstance(action, Search | Answer):
        name = "search" if isinstance(action, Search) else "answer"
        content = action.query if isinstance(action, Search) else action.text
        closing = text.index(f"</{name}>")
        before = [span for span in spans_of([text[:closing]]) if span.kind == "text"]
        assert before[-1].inside == name
        assert before[-1].text.strip() == content


def test_only_what_may_become_a_tag_waits() -> None:
    stream = TagStream()
    assert stream.feed("a < b") == [Span("text", "", "a < b")]
    assert stream.feed(" <sear") == [Span("text", "", " ")]
    assert stream.feed("ching") == [Span("text", "", "<searching")]
    assert stream.feed("<search") == []
    assert stream.feed(">q") == [Span("tag", "search", "<search>"), Span("text", "search", "q")]
    assert stream.feed("</") == []
    assert stream.finish() == [Span("text", "search", "</")]


def test_a_thought_only_mentions_tags() -> None:
    assert spans_of(["<think>I can <search> or</answer></think><answer>Oslo"]) == [
        Span("tag", "think", "<think>"),
        Span("text", "think", "I can <search> or</answer>"),
        Span("tag", "think", "</think>"),
        Span("tag", "answer", "<answer>"),
        Span("text", "answer", "Oslo"),
    ]
