"""A policy that follows a script, for demonstrations and tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sleuth.errors import PolicyError
from sleuth.protocols import OnToken, TextCodec
from sleuth.types import Generation, Request, Sampling


class ScriptedPolicy:
    """Answers the n-th request of an episode with ``script(question id, n)``, encoded once.

    Its log-probs are 0 (probability 1). Turns longer than the request's budget are cut, like sampled turns. Inside a
    thought that is open already, the script's own ``<think>`` is left out. ``end_turns``: a turn without a stop string
    ends in an EOS, as those of a policy that calls tools.
    """

    trainable = True

    def __init__(
        self, codec: TextCodec, script: Callable[[str, int], str], version: int = 0, *, end_turns: bool = False
    ) -> None:
        self._codec = codec
        self._script = script
        self._version = version
        self._end_turns = end_turns
        self._turns: dict[str, int] = {}

    @property
    def version(self) -> int:
        return self._version

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, on_token: OnToken | None = None
    ) -> list[Generation]:
        return [self._answer(request, sampling, on_token) for request in requests]

    def release(self, episodes: Iterable[str]) -> None:
        for episode in episodes:
            self._turns.pop(episode, None)

    def _answer(self, request: Request, sampling: Sampling, on_token: OnToken | None) -> Generation:
        turn = self._turns.get(request.episode, 0)
        self._turns[request.episode] = turn + 1
        text = self._script(request.episode.rpartition("#")[0], turn)
        if request.thinking and text.startswith("<think>"):
            text = text.removeprefix("<think>").lstrip(" ")
        ids = self._codec.encode(text, trusted=True)
        if not ids:
            raise PolicyError(f"the script has no text for turn {turn} of {request.episode}")
        if self._end_turns and not any(stop in text for stop in sampling.stop):
            ids = [*ids, self._codec.eos_token_id]
        cut = ids[: request.max_new_tokens]
        whole = len(cut) == len(ids)
        if whole and cut[-1] == self._codec.eos_token_id:
            reason = "eos"
        elif whole and any(stop in text for stop in sampling.stop):
            reason = "stop"
        else:
            reason = "length" if len(cut) == request.max_new_tokens else "eos"
        for token in cut if on_token else ():
            on_token(request.episode, token, 0.0)  # type: ignore[misc]
        return Generation(tuple(cut), (0.0,) * len(cut), reason, self._version)  # type: ignore[arg-type]
