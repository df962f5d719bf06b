"""``sleuth chat``: ask a policy questions and watch it think, search, read and answer.

Model names mean the same as in ``sleuth evaluate``: a run's folder is the policy that the run trained, with the run's
environment and retriever. Without a terminal, questions are read one per line.
"""

from __future__ import annotations

import io
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli.console import error_console, output_console
from workflows.retrievers import HELP, retriever_settings

if TYPE_CHECKING:
    from agent.session import Knobs, Tools
    from cli.chat.commands import Chat
    from sleuth.protocols import Retriever, TextCodec
    from workflows.config import RunSettings

Mode = Literal["direct", "cot", "rag", "search"]


def chat(
    model: Annotated[str, typer.Argument(help="Model, run folder or config file.")],
    retriever: Annotated[str | None, typer.Option(help=f"{HELP} With a run: the run's.")] = None,
    mode: Annotated[Mode | None, typer.Option(help="How the policy answers; search by default.")] = None,
    preset: Annotated[str | None, typer.Option(help="Protocol: sleuth, search_r1 or minimal.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Passages per search.")] = None,
    turns: Annotated[int | None, typer.Option(help="Turns per question, including the answer.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the first question.")] = 0,
    data: Annotated[str | None, typer.Option(help="Data set that /load reads. With a run: its data.dev.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting.")] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Read one question per line and print one JSON object for each.")
    ] = False,
) -> None:
    """Talk to a search agent. In a pipe: one question per line, plain text.

    Exit status in a pipe: 2 if a line could not be processed, 3 if the retriever failed on a question.
    """
    from workflows.model_settings import session_settings

    settings = session_settings(model, overrides or [], retriever, mode, preset, top_k, turns)
    from cli.chat.commands import COMMANDS
    from cli.chat.loop import converse, keys_unseen, read_lines, say_no_terminal

    with keys_unseen():
        opened = _open(settings, temperature, seed, data or settings.data.dev, to_stderr=json)

    if sys.stdin.isatty() and sys.stdout.isatty() and not json:
        from cli.chat.prompt import make_prompt
        from cli.chat.view import describe
        from hub.cache import cache_folder

        session = opened.session
        error_console().print(f"{settings.policy.model}: ask a question, or /help", style="dim", markup=False)
        toolbar = lambda: describe(session.knobs, session.retriever)
        converse(opened, make_prompt(COMMANDS, cache_folder() / "chat_history", toolbar))
        return
    if not json:
        say_no_terminal(sys.stdin)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    status = read_lines(opened, sys.stdin, json)
    if status:
        raise typer.Exit(status)


def _open(settings: RunSettings, temperature: float, seed: int, source: str | None, to_stderr: bool) -> Chat:
    from workflows.logs import quiet_libraries

    quiet_libraries()
    from agent.session import Session
    from cli.chat.commands import Chat
    from cli.chat.view import View
    from workflows.model_checks import fit_context
    from workflows.wiring import limit_threads, make_policy, make_retriever

    settings = fit_context(settings)
    limit_threads(settings.threads, settings.policy, rows=1)
    searches = settings.environment.kind not in ("direct", "cot")
    retriever = make_retriever(settings.retriever) if searches else None
    with error_console().status("loading the policy") if error_console().is_terminal else nullcontext():
        policy, codec = make_policy(settings.policy)
    tools, name = _tools(settings, codec, retriever)
    session = Session(policy, codec, tools, _knobs(settings, temperature, seed), name, source)
    return Chat(session, View(error_console() if to_stderr else output_console(), codec.decode), codec)


def _knobs(settings: RunSettings, temperature: float, seed: int) -> Knobs:
    from agent.session import Knobs

    environment = settings.environment
    return Knobs(environment.kind, environment.top_k, temperature, environment.turns, environment.searches, seed)


def _tools(settings: RunSettings, codec: TextCodec, opened: Retriever | None) -> tuple[Tools, str | None]:
    """What connects the session to the other packages, and the name of its first retriever.

    ``opened`` is that retriever, if it is already open.
    """
    from agent.session import Tools
    from envs.config import EnvironmentSettings
    from envs.factory import make_environment
    from rewards.text_match import exact_match, f1
    from sleuth.settings import validate
    from workflows.wiring import make_retriever, make_tool_box, read_questions

    name = _name_of(settings)

    def chosen(knobs: Knobs) -> EnvironmentSettings:
        values = settings.environment.model_dump() | {
            "kind": knobs.mode,
            "top_k": knobs.top_k,
            "turns": knobs.turns,
            "searches": knobs.searches,
        }
        return validate(EnvironmentSettings, values, "environment")

    @cache
    def made(knobs: Knobs) -> Any:
        return make_environment(chosen(knobs), codec)

    def environment(knobs: Knobs) -> Any:
        return made(replace(knobs, seed=0, temperature=0.0))  # no part of an environment

    def box(knobs: Knobs, retriever: Retriever | None) -> Any:
        return make_tool_box(chosen(knobs), retriever)

    def retriever(text: str) -> Any:
        if text == name:
            return opened or make_retriever(settings.retriever)
        return make_retriever(retriever_settings(text))

    return Tools(environment, retriever, read_questions, {"em": exact_match, "f1": f1}, box), name


def _name_of(settings: RunSettings) -> str | None:
    return None if settings.retriever is None else settings.retriever.name
