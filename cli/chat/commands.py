"""The slash commands of a session. Wrong use raises ConfigError or DataError, which the session shows as one line."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from agent.session import Exchange, Session
from cli.chat.pages import save_page
from cli.chat.view import View
from sleuth.errors import ConfigError, did_you_mean
from sleuth.types import Question

Argument = Literal["none", "word", "path", "retriever", "mode"]


@dataclass(slots=True)
class Chat:
    """A session, its view, and its tokenizer (``HFCodec``'s) for the text of single tokens."""

    session: Session
    view: View
    codec: Any

    def ask(self, text: str) -> Exchange:
        return self._played(lambda: self.session.ask(text, self.view.on_event))

    def put(self, question: Question) -> Exchange:
        return self._played(lambda: self.session.put(question, self.view.on_event))

    def again(self, retriever: str | None) -> Exchange:
        """Ask again, then show the previous and the new answer side by side."""
        pair: list[Exchange | None] = []

        def play() -> Exchange:
            before, now = self.session.again(retriever, self.view.on_event)
            pair.append(before)
            return now

        now = self._played(play)
        if pair[0] is not None:
            self.view.beside(pair[0], now)
        return now

    def _played(self, play: Callable[[], Exchange]) -> Exchange:
        with self.view.playing():
            exchange = play()
        self.view.ended(exchange)
        return exchange


@dataclass(frozen=True, slots=True)
class Command:
    """``run`` gets the rest of the line, stripped, and returns the exchange if a question was asked."""

    usage: str
    help: str
    run: Callable[[Chat, str], Exchange | None]
    argument: Argument = "word"


def run_command(chat: Chat, line: str) -> Exchange | None:
    """Run a slash command. Raises SleuthError for wrong use, EOFError for ``/quit``."""
    name, _, rest = line.removeprefix("/").partition(" ")
    if name not in COMMANDS:
        raise ConfigError(f"no command /{name}", did_you_mean(name, COMMANDS))
    return COMMANDS[name].run(chat, rest.strip())


def _retriever(chat: Chat, rest: str) -> None:
    if rest:
        chat.session.use_retriever(rest)
    _show_knobs(chat)


def _knob(name: str, convert: Callable[[str], object], what: str) -> Callable[[Chat, str], None]:
    def turn(chat: Chat, rest: str) -> None:
        if rest:
            try:
                value = convert(rest)
            except ValueError:
                raise ConfigError(f"'{rest}' is not {what}") from None
            chat.session.change(**{name: value})
        _show_knobs(chat)

    return turn


def _show_knobs(chat: Chat) -> None:
    chat.view.knobs(chat.session.knobs, chat.session.retriever)


def _mask(chat: Chat, rest: str) -> None:
    _nothing_more("mask", rest)
    chat.view.mask(chat.session.last.trajectory, chat.codec.decode)


def _tokens(chat: Chat, rest: str) -> None:
    _nothing_more("tokens", rest)
    trajectory = chat.session.last.trajectory
    decode = chat.codec.tokenizer.decode
    texts = {token: decode([token], clean_up_tokenization_spaces=False) for token in set(trajectory.token_ids)}
    chat.view.tokens_of(trajectory, texts)


def _passage(chat: Chat, rest: str) -> None:
    words = _words(rest)
    if len(words) not in (1, 2) or not words[0].isdecimal():
        raise ConfigError("which passage?", "/passage N, the number in brackets; /passage N FILE saves its page")
    number = int(words[0])
    hit = chat.session.passage(number)
    if len(words) == 1:
        chat.view.passage(number, hit)
        return
    save_page(hit.passage.image, words[1])
    chat.view.line(f"page {number} written to {words[1]}", "dim")


def _again(chat: Chat, rest: str) -> Exchange:
    return chat.again(rest or None)


def _grade(chat: Chat, rest: str) -> None:
    chat.view.grades(chat.session.grade(rest.split("|")))


def _save(chat: Chat, rest: str) -> None:
    words = _words(rest)
    if len(words) not in (1, 2) or words[1:] not in ([], ["all"]):
        raise ConfigError("save to which file?", "/save FILE.jsonl, or /save FILE.jsonl all")
    count = chat.session.save(words[0], everything=words[1:] == ["all"])
    chat.view.line(f"{count} {'trajectory' if count == 1 else 'trajectories'} appended to {words[0]}", "dim")


def _load(chat: Chat, rest: str) -> Exchange:
    words = _words(rest)
    if len(words) > 2:
        raise ConfigError("/load takes a file and the number or id of a question", "quote a name with spaces")
    of_the_last_set = len(words) == 1 and words[0].isdecimal()
    question = chat.session.load(None, words[0]) if of_the_last_set else chat.session.load(*words)
    chat.view.question(f"{question.text}  [{question.id}{', ' + question.kind if question.kind else ''}]")
    return chat.put(question)


def _help(chat: Chat, rest: str) -> None:
    _nothing_more("help", rest)
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for command in COMMANDS.values():
        table.add_row(Text(command.usage, style="cyan"), Text(command.help))
    chat.view.console.print(table)
    chat.view.line("Anything else is a question. Alt-Enter, or \\ at the end of a line, adds another line.", "dim")
    chat.view.line("Ctrl-C stops an answer, Ctrl-D quits. A space before a slash makes it a question.", "dim")


def _quit(_chat: Chat, rest: str) -> None:
    _nothing_more("quit", rest)
    raise EOFError


def _words(rest: str) -> list[str]:
    try:
        return shlex.split(rest)
    except ValueError as error:
        raise ConfigError(f"cannot read '{rest}': {error}", "close the quote") from None


def _nothing_more(name: str, rest: str) -> None:
    if rest:
        raise ConfigError(f"/{name} takes no argument")


COMMANDS: Mapping[str, Command] = {
    "retriever": Command(
        "/retriever INDEX", "search this index, URL or {kind: ...} from now on", _retriever, "retriever"
    ),
    "top-k": Command("/top-k N", "passages per search", _knob("top_k", int, "a whole number")),
    "temperature": Command("/temperature T", "0 is greedy", _knob("temperature", float, "a number")),
    "turns": Command("/turns N", "turns per question, including the answer", _knob("turns", int, "a whole number")),
    "searches": Command("/searches N", "searches per question", _knob("searches", int, "a whole number")),
    "mode": Command("/mode MODE", "search, direct, cot or rag", _knob("mode", str, "a mode"), "mode"),
    "seed": Command("/seed N", "seed of the next question", _knob("seed", int, "a whole number")),
    "mask": Command("/mask", "the last transcript: what was sampled (1), what was inserted (0)", _mask, "none"),
    "tokens": Command("/tokens", "the same token by token: mask, id, log-prob", _tokens, "none"),
    "passage": Command(
        "/passage N [FILE]",
        "a passage of the last answer in full; with FILE, its page is saved there",
        _passage,
        "path",
    ),
    "again": Command(
        "/again [RETRIEVER]", "ask the last question again, next to the previous answer", _again, "retriever"
    ),
    "grade": Command("/grade ANSWER [| ANSWER]", "EM and F1 of the last answer", _grade),
    "save": Command("/save FILE.jsonl [all]", "append the last trajectory, or all of the session", _save, "path"),
    "load": Command(
        "/load [DATA] [N|ID]", "ask a question from a data set and grade it; by default the next one", _load, "path"
    ),
    "help": Command("/help", "this list", _help, "none"),
    "quit": Command("/quit", "quit, like Ctrl-D", _quit, "none"),
}
