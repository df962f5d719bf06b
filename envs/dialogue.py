"""Where an episode stands in its transcript: whether a thought is open, and how an observation joins on.

The state follows from what stands in the transcript:

- The prompt opens a thought if its last word is ``<think>``; many chat templates of thinking models write it.
- A turn leaves a thought open if its budget ends inside one.
- An observation never leaves one open unless it says so itself. After a turn that sampled the end of its message (EOS),
  the observation is a new user message in the chat template's frame; the thought ended with the message, and the frame
  may open the next one. Otherwise the observation stands in the assistant's own message, and closes an open thought by
  writing ``</think>`` first.

A protocol whose tools answer in messages of their own (Hermes) always has the template's frame: what the policy did not
sample of the end of its message is written for it.

A lenient preset knows no thoughts and no frames: its observations are appended as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from envs.chat import ChatFrame, open_chat, tool_frame, written_call
from envs.config import EnvironmentSettings
from envs.grammar import CLOSE_THOUGHT, ends_thinking, opens_thought
from envs.observation import Piece, joined, size, trusted
from envs.prompts import PRESETS
from envs.protocols.base import TurnProtocol, open_protocol
from envs.search_r1 import parse_lenient
from envs.wording import laid_over
from sleuth.errors import ConfigError
from sleuth.protocols import TextCodec
from sleuth.types import Action, Generation, Observation, Search


class Dialogue:
    """One episode's state. ``thinking``: a thought is open where the next turn begins."""

    def __init__(self, settings: EnvironmentSettings, codec: TextCodec, protocol: TurnProtocol | None = None) -> None:
        """``protocol``: that of the settings, where it is open already."""
        self._settings = settings
        self._codec = codec
        self.protocol = protocol or open_protocol(settings)
        self.preset = laid_over(self.protocol.wording(PRESETS[settings.preset]), settings.prompts)
        self._shown = self.protocol.schemas if self.protocol.tool_messages else ()
        self._tool_frames: dict[int, tuple[str, ...]] = {}
        self.frame: ChatFrame | None = None
        self._generation: Generation | None = None
        self._left_open = False
        self._lenient = self.preset.lenient and settings.protocol == "tags"
        self.thinking = False

    def begin(self, wording: str) -> str:
        """The whole prompt around ``wording``, slots unfilled."""
        opening = open_chat(wording, self.preset, self._settings, self._codec, self._shown)
        if self.protocol.tool_messages:
            self._check_template(opening.frame is not None)
        self.frame, self._generation, self._left_open = None if self._lenient else opening.frame, None, False
        self.thinking = not self._lenient and opens_thought(opening.text)
        return opening.text

    def _check_template(self, applies: bool) -> None:
        """What is wrong with the chat template is said at the start."""
        self.tool_frame(1)
        if not applies:
            said = f"protocol {self._settings.protocol} needs the tokenizer's chat template, and plain text is set"
            raise ConfigError(said, "set environment.chat: always, or environment.protocol: tags")
        query = "sleuthhassearched"
        written = written_call(self._codec, self._settings, self._shown, query) if self._shown else None
        if written is not None and self.protocol.parse(written, False) != Search(query):
            said = f"the tokenizer's chat template has calls written in another form than {self._settings.protocol}"
            raise ConfigError(said, "set environment.protocol: tags")

    def over(self, text: str, generation: Generation) -> bool:
        """Whether the turn has ended: a stop string inside a thought is a mention and ends none."""
        self._generation = generation
        return self._lenient or generation.finish_reason != "stop" or self.protocol.ended(text, self.thinking)

    def parse(self, text: str) -> Action:
        if self._lenient:
            return parse_lenient(text)
        self._left_open = ends_thinking(text, self.thinking)
        return self.protocol.parse(text, self.thinking)

    def margin(self) -> int:
        """How many tokens ``join`` adds to the pieces of an observation."""
        return size([*self._before(), *self._after()])

    def join(self, pieces: Sequence[Piece]) -> Observation:
        """``pieces``, of which the first and the last are our own text, as the observation after the turn."""
        before, after = self._before(), self._after()
        if after:
            pieces = _without_margins(self._codec, pieces)
        self._begin_turn("".join(piece.text for piece in after))
        return joined([*before, *pieces, *after])

    def results_margin(self, count: int) -> int:
        """How many tokens ``results`` adds to ``count`` blocks."""
        if not self.protocol.tool_messages:
            return self.margin()
        return size([self._ending(), *(trusted(self._codec, text) for text in self.tool_frame(count)[1:])])

    def results(self, blocks: Sequence[Sequence[Piece]]) -> Observation:
        """What came back to the turn: a block for each query, or for the called tool, as the observation."""
        if not self.protocol.tool_messages:
            return self.join([piece for block in blocks for piece in block])
        pieces, frame = [self._ending(), *blocks[0]], self.tool_frame(len(blocks))
        for text, block in zip(frame[1:], [*blocks[1:], ()], strict=True):
            pieces += [trusted(self._codec, text), *block]
        self._begin_turn(frame[-1])
        return joined(pieces)

    def tool_frame(self, count: int) -> tuple[str, ...]:
        if count not in self._tool_frames:
            self._tool_frames[count] = tool_frame(self._codec, self._settings, self._shown, count)
        return self._tool_frames[count]

    def _ending(self) -> Piece:
        """The end of the policy's message as far as it was not sampled, and the start of a tool's."""
        text = self.tool_frame(1)[0]
        return trusted(self._codec, text[_sampled_end(self._codec, text, self._generation) :])

    def _begin_turn(self, after: str) -> None:
        self.thinking = opens_thought(after)
        self._generation, self._left_open = None, False

    def _before(self) -> list[Piece]:
        if self._framed is not None:
            text = self._framed.before
            return [trusted(self._codec, text[_sampled_end(self._codec, text, self._generation) :])]
        return [trusted(self._codec, f"\n{CLOSE_THOUGHT}\n")] if self._left_open else []

    def _after(self) -> list[Piece]:
        return [trusted(self._codec, self._framed.after)] if self._framed is not None else []

    @property
    def _framed(self) -> ChatFrame | None:
        """The frame of the next observation, if it has one."""
        ended = self._generation is not None and self._generation.finish_reason == "eos"
        return self.frame if ended or self.protocol.tool_messages else None


def _sampled_end(codec: TextCodec, text: str, generation: Generation | None) -> int:
    """Length of the end-of-turn token at the start of ``text`` (spaces before it included) if it was sampled."""
    start = text.lstrip()
    end = max((string for string in codec.reserved if start.startswith(string)), key=len, default="")
    last = generation.token_ids[-1:] if generation is not None else ()
    return len(text) - len(start) + len(end) if end and tuple(codec.encode(end, trusted=True)) == last else 0


def _without_margins(codec: TextCodec, pieces: Sequence[Piece]) -> list[Piece]:
    """Without line breaks at the start and the end: a message has none."""
    first, last = pieces[0].text.lstrip("\n"), pieces[-1].text.rstrip("\n")
    if len(pieces) == 1:
        return [trusted(codec, first.rstrip("\n"))]
    return [trusted(codec, first), *pieces[1:-1], trusted(codec, last)]
