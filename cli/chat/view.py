"""Displays a session: turns as they are sampled, folded passages, and details of the last answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agent.events import Event, PassagesGiven, ThoughtOpen, TokenSampled, TurnTaken
from agent.session import Exchange, Knobs
from cli.chat.flow import GUTTER, Flow
from cli.chat.stream import Span, TagStream, TokenText
from cli.console import called, plain
from sleuth.types import Call, Hit, Image, Invalid, Search, Source, Trajectory, Turn

LOOKS: Mapping[str, tuple[str, str]] = {
    "think": ("think", "dim italic"),
    "search": ("search", "cyan"),
    "tool_call": ("call", "cyan"),
    "open": ("open", "cyan"),
    "answer": ("answer", "bold green"),
    "information": ("made up", "red"),
    "tool_response": ("made up", "red"),
    "": ("", "dim"),
}
"""Tag -> label and style. Only the environment may write passages; a policy's own are made up."""
SOURCES: Mapping[Source, str] = {"prompt": "dim", "policy": "bold green", "environment": "blue"}
PAGE = (64, 44)
"""Columns and lines of a page at most."""
FOLDED = 160
"""Width of a folded passage without a terminal, in columns."""


class View:
    """Shows one question after another on ``console``; events come from the rollout driver."""

    def __init__(self, console: Console, decode: Callable[[Sequence[int]], str]) -> None:
        self.console = console
        self._flow = Flow(console)
        self._text = TokenText(decode)
        self._tags = TagStream()
        self._inside: str | None = None
        self._passages = 0
        self._streamed = False
        self._stopped = ""
        self.turns = 0
        self.tokens = 0

    # While a question is played

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Wraps an answer in progress. However it ends, the next line starts at the left."""
        self._text.finish()
        self._tags.finish()
        self._inside = None
        self._streamed = False
        self._passages = self.turns = self.tokens = 0
        self._stopped = ""
        try:
            yield
        except BaseException as error:
            self._flow.end()
            if isinstance(error, KeyboardInterrupt):
                self._stopped = f" after {self.turns} turns and {self.tokens} tokens; this answer is not kept"
            raise

    def on_event(self, event: Event) -> None:
        if isinstance(event, TokenSampled):
            self.tokens += 1
            self._streamed = True
            self._spans(self._tags.feed(self._text.feed(event.token_id)))
        elif isinstance(event, ThoughtOpen):
            self._tags.inside_thought()
        elif isinstance(event, TurnTaken):
            self._turn(event.turn)
        elif isinstance(event, PassagesGiven):
            self._hits(event.hits)

    def stopped(self) -> None:
        """The user has stopped an answer or a command."""
        if self.console.is_terminal:
            self.console.file.write("\x1b[0m")  # the interrupt may have left a colour switched on
        self.line(f"stopped{self._stopped}" + (". /again asks again" if self._stopped else ""), "yellow")
        self._stopped = ""

    def ended(self, exchange: Exchange) -> None:
        """Show how the question ended and what it cost."""
        trajectory = exchange.trajectory
        if exchange.failure:
            failed = trajectory.failure.by if trajectory.failure else "the retriever"
            self.line(f"{failed} failed: {exchange.failure}", "red")
        elif trajectory.answer is None:
            self.line(f"no answer: {STOPS.get(trajectory.stop, trajectory.stop)}", "yellow")
        self.line(" · ".join(costs(exchange)), "dim")
        if exchange.grades:
            self.grades(exchange)

    def _spans(self, spans: Sequence[Span]) -> None:
        for span in spans:
            if span.kind == "tag":
                self._inside = None
                continue
            if self._inside is None or self._inside != span.inside:
                if not span.text.strip():
                    continue
                self._inside = span.inside
                self._flow.begin(*LOOKS[span.inside])
            self._flow.write(span.text)

    def _turn(self, turn: Turn) -> None:
        # A policy that does not stream its tokens is shown turn by turn.
        rest = self._text.finish() if self._streamed else turn.text
        self._spans([*self._tags.feed(rest), *self._tags.finish()])
        self._inside, self._streamed = None, False
        self._flow.end()
        self.turns += 1
        if isinstance(turn.action, Invalid):
            self.field("invalid", turn.action.reason, "yellow")
        if isinstance(turn.action, Call):
            self.field("called", called(turn.action), "cyan")
            self.field("failed" if turn.failure else "returned", turn.failure or turn.observation.strip(), "blue")
        self._hits(turn.hits)
        if isinstance(turn.action, Search) and not turn.hits and turn.observation:
            self.line("nothing found", "blue")

    def _hits(self, hits: Sequence[Hit]) -> None:
        for hit in hits:
            self._passages += 1
            self.console.print(folded(self._passages, hit, self._width), soft_wrap=True)

    @property
    def _width(self) -> int:
        return self.console.width - 1 if self.console.is_terminal else FOLDED

    # Lines

    def line(self, text: str, style: str = "") -> None:
        self.console.print(Text(" " * GUTTER + plain(text), style=style), soft_wrap=True)

    def field(self, label: str, text: str, style: str = "") -> None:
        self._flow.begin(label, style)
        self._flow.write(text)
        self._flow.end()

    def question(self, text: str) -> None:
        self.field("question", text, "bold")

    def grades(self, exchange: Exchange) -> None:
        accepted = " | ".join(exchange.trajectory.question.answers)
        self.field("graded", f"{_figures(exchange.grades)}   accepted: {accepted}", "magenta")

    def knobs(self, knobs: Knobs, retriever: str | None) -> None:
        self.line(describe(knobs, retriever), "dim")

    # The last answer

    def passage(self, number: int, hit: Hit) -> None:
        """A passage in full."""
        title = f"[{number}] {hit.passage.title}"
        self.field("passage", f"{title}\n{hit.passage.text}", "blue")
        self.line(f"rank {hit.rank}, score {hit.score:.4f}, id {hit.passage.id}", "dim")
        if hit.passage.image is not None:
            self._page(hit.passage.image)

    def _page(self, image: Image) -> None:
        """Its name and size, and the picture where the terminal has colours."""
        from cli.chat.pages import drawn, size_of_page

        if image.content is None:
            self.line(f"page {image.name}, whose picture the retriever does not send", "dim")
            return
        width, height = size_of_page(image)
        self.line(f"page {image.name}, {width} x {height} pixels", "dim")
        if self.console.is_terminal and self.console.color_system is not None:
            self.console.print(
                Padding(drawn(image, min(self._width - GUTTER, PAGE[0]), PAGE[1]), (0, 0, 0, GUTTER), expand=False)
            )

    def mask(self, trajectory: Trajectory, decode: Callable[[Sequence[int]], str]) -> None:
        """The whole transcript, one block per segment: mask 1 where the policy sampled, 0 where it did not."""
        for segment in trajectory.segments:
            mask = int(segment.source == "policy")
            style = SOURCES[segment.source]
            self.field(f"{mask}", f"{segment.source}, {len(segment.token_ids)} tokens", f"{style} reverse")
            self.field("", decode(segment.token_ids), style)
        sampled, length = sum(trajectory.policy_mask), len(trajectory.token_ids)
        self.line(f"{sampled} of {length} tokens are trained on", "dim")

    def tokens_of(self, trajectory: Trajectory, texts: Mapping[int, str]) -> None:
        """One line per token: position, mask, source, id, log-prob, text."""
        from cli.show import show_tokens

        show_tokens(trajectory, self.console, texts)

    def beside(self, left: Exchange, right: Exchange) -> None:
        """Two runs of one question in two columns."""
        table = Table(expand=self.console.is_terminal, show_lines=False, box=None, padding=(0, 2, 0, 0))
        for exchange in (left, right):
            table.add_column(Text(plain(exchange.retriever or exchange.knobs.mode), style="bold"), ratio=1)
        for row in zip_longest(*(_summary(exchange) for exchange in (left, right)), fillvalue=Text()):
            table.add_row(*row)
        self.console.print(table)


STOPS = {
    "turn_budget": "all turns are used (/turns N allows more)",
    "token_budget": "the transcript is full (environment.total_tokens)",
    "prompt_too_long": "the question leaves no room to answer (environment.total_tokens)",
}
"""Human-readable stop reasons."""


def folded(number: int, hit: Hit, width: int) -> Text:
    """A passage on one line of at most ``width`` columns."""
    text = Text(" " * GUTTER + f"[{number}] #{hit.rank} {hit.score:8.3f}  ", style="blue")
    if hit.passage.image is not None:
        text.append("▤ ")
    text.append(_cut(_one_line(hit.passage.title), 40), style="bold")
    text.append("  ")
    room = width - cell_len(text.plain)
    text.append(_cut(_one_line(hit.passage.text), max(room, 0)), style="dim")
    return text


def costs(exchange: Exchange) -> list[str]:
    """The cost of a question, in readable form."""
    trajectory = exchange.trajectory
    searches, calls, turns = len(trajectory.queries), len(trajectory.calls), len(trajectory.turns)
    return [
        f"{searches} search{'' if searches == 1 else 'es'}",
        *([f"{calls} call{'' if calls == 1 else 's'} of tools"] if calls else []),
        f"{turns} turn{'' if turns == 1 else 's'}",
        f"{sum(trajectory.policy_mask)} tokens sampled of {len(trajectory.token_ids)}",
        f"{sum(trajectory.timings.values()):.1f} s",
        f"seed {exchange.knobs.seed}",
    ]


def describe(knobs: Knobs, retriever: str | None) -> str:
    """The settings on one line."""
    heat = "greedy" if knobs.temperature == 0 else f"temperature {knobs.temperature:g}"
    budget = f"turns {knobs.turns}" + (f" with {knobs.searches} searches" if knobs.mode == "search" else "")
    searched = (
        [f"retriever {retriever or 'none'}", f"top-k {knobs.top_k}"] if knobs.mode not in ("direct", "cot") else []
    )
    return " · ".join([f"mode {knobs.mode}", *searched, budget, heat, f"next seed {knobs.seed}"])


def as_json(exchange: Exchange) -> dict[str, Any]:
    """An exchange as one JSON object."""
    trajectory = exchange.trajectory
    return {
        "question": trajectory.question.text,
        "id": trajectory.question.id,
        "answer": trajectory.answer,
        "stop": trajectory.stop,
        **({"error": exchange.failure} if exchange.failure else {}),
        **exchange.grades,
        "given": [_hit_json(hit) for hit in trajectory.given],
        "searches": [
            {"query": query, "hits": [_hit_json(hit) for hit in hits]}
            for turn in trajectory.searches
            for query, hits in turn.found
        ],
        "calls": [
            {
                "tool": turn.action.tool,
                "arguments": dict(turn.action.arguments),
                "answer": turn.observation,
                **({"failure": turn.failure} if turn.failure else {}),
            }
            for turn in trajectory.calls
            if isinstance(turn.action, Call)
        ],
        "turns": len(trajectory.turns),
        "tokens": len(trajectory.token_ids),
        "policy_tokens": sum(trajectory.policy_mask),
        "seconds": dict(trajectory.timings),
        "seed": exchange.knobs.seed,
        "retriever": exchange.retriever,
    }


def _summary(exchange: Exchange) -> list[Text]:
    """A block of lines per turn, so that turns line up side by side, and one for the end."""
    trajectory = exchange.trajectory
    blocks = [[*map(_short_hit, trajectory.given)]] if trajectory.given else []
    for turn in trajectory.turns:
        lines = []
        if isinstance(turn.action, Search):
            lines = [Text(f"search  {_one_line(query)}", style=LOOKS["search"][1]) for query in turn.action.queries]
        elif isinstance(turn.action, Call):
            lines = [Text(f"call  {_one_line(called(turn.action))}", style=LOOKS["search"][1])]
        elif isinstance(turn.action, Invalid):
            lines = [Text(f"invalid  {_one_line(turn.action.reason)}", style="yellow")]
        blocks.append([*lines, *map(_short_hit, turn.hits)])
    answer = trajectory.answer
    if answer is not None:
        end = [Text(f"answer  {_one_line(answer)}", style=LOOKS["answer"][1])]
    else:
        end = [Text(_one_line(exchange.failure or STOPS.get(trajectory.stop, trajectory.stop)), style="yellow")]
    if exchange.grades:
        end.append(Text(_figures(exchange.grades), style="magenta"))
    blocks.append([*end, Text(", ".join(costs(exchange)), style="dim")])
    return [Text("\n").join(block) for block in blocks if block]


def _figures(grades: Mapping[str, float]) -> str:
    return "  ".join(f"{name.upper()} {value:.3g}" for name, value in grades.items())


def _short_hit(hit: Hit) -> Text:
    return Text(f"  #{hit.rank} {hit.score:8.3f}  {_one_line(hit.passage.title)}", style="blue")


def _hit_json(hit: Hit) -> dict[str, Any]:
    passage = hit.passage
    row = {"id": passage.id, "title": passage.title, "text": passage.text, "score": hit.score, "rank": hit.rank}
    return row if passage.image is None else {**row, "image": passage.image.name}


def _one_line(text: str) -> str:
    return plain(" ".join(text.split()))


def _cut(text: str, columns: int) -> str:
    if cell_len(text) <= columns:
        return text
    return set_cell_size(text, columns - 1) + "…" if columns > 1 else ""
