"""Where an episode stands in its transcript: whether a thought is open, and how an observation joins on.

The state follows from what stands in the transcript:

- The prompt opens a thought if its last word is ``<think>``; many chat templates of thinking models write it.
- A turn leaves a thought open if its budget ends inside one.
- An observation never leaves one open unless it says so itself. After a turn that sampled the end of its message (EOS),
  the observation is a new user message in the chat template's frame; the thought ended with the message, and the frame
  may open the next one. Otherwise the observation stands in the assistant's own message, and closes an open thought by
  writing ``</think>`` first.
"""

from __future__ import annotations

from collections.abc import Sequence

from envs.chat import ChatFrame, open_chat
from envs.config import EnvironmentSettings
from envs.grammar import CLOSE_THOUGHT, action_end, ends_thinking, opens_thought, parse_turn
from envs.observation import Piece, joined, size, trusted
from envs.prompts import Preset
from sleuth.protocols import TextCodec
from sleuth.types import Action, Generation, Observation


class Dialogue:
    """One episode's state. ``thinking``: a thought is open where the next turn begins."""

    def __init__(self, settings: EnvironmentSettings, codec: TextCodec) -> None:
        self._settings = settings
        self._codec = codec
        self._frame: ChatFrame | None = None
        self._generation: Generation | None = None
        self._left_open = False
        self.thinking = False

    def begin(self, wording: str, preset: Preset) -> str:
        """The whole prompt around ``wording``, slots unfilled."""
        opening = open_chat(wording, preset, self._settings, self._codec)
        self._frame, self._generation, self._left_open = opening.frame, None, False
        self.thinking = opens_thought(opening.text)
        return opening.text

    def over(self, text: str, generation: Generation) -> bool:
        """Whether the turn has ended: a stop string inside a thought is a mention and ends none."""
        self._generation = generation
        return generation.finish_reason != "stop" or action_end(text, self.thinking) is not None

    def parse(self, text: str) -> Action:
        self._left_open = ends_thinking(text, self.thinking)
        return parse_turn(text, self.thinking)

    def margin(self) -> int:
        """How many tokens ``join`` adds to the pieces of an observation."""
        return size([*self._before(), *self._after()])

    def join(self, pieces: Sequence[Piece]) -> Observation:
        """``pieces``, of which the first and the last are our own text, as the observation after the turn."""
        before, after = self._before(), self._after()
        if after:
            pieces = _without_margins(self._codec, pieces)
        self.thinking = opens_thought("".join(piece.text for piece in after))
        self._generation, self._left_open = None, False
        return joined([*before, *pieces, *after])

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
        return self._frame if ended else None


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
