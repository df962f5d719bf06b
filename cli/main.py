"""The program ``sleuth``: its commands and its error handling.

Commands import what they need when they run, so that ``sleuth --help`` is fast. An error that a user can fix ends as
one line on standard error and exit status 2; an interrupt exits with 130; anything else is a bug and shows its
traceback.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import sleuth
from cli.console import error_console, print_error
from hub.threads import wait_briefly
from sleuth.errors import SleuthError

COMMANDS = {
    "demonstrate": "cli.train:demonstrate",
    "warmstart": "cli.train:warmstart",
    "train": "cli.train:train",
    "train-retriever": "cli.train_retriever:train_retriever",
    "cotrain": "cli.cotrain:cotrain",
    "mine": "cli.train_retriever:mine",
    "synthesize": "cli.synthesize:synthesize",
    "world": "cli.world:world",
    "pages": "cli.pages:pages",
    "download": "cli.download:download",
    "evaluate": "cli.evaluate:evaluate",
    "chat": "cli.chat.command:chat",
    "index": "cli.index:index",
    "search": "cli.search:search",
    "evaluate-retrieval": "cli.evaluate_retrieval:evaluate_retrieval",
    "serve-retriever": "cli.serve_retriever:serve_retriever",
    "report": "cli.report.command:report",
    "export": "cli.export:export",
    "export-rows": "cli.export_rows:export_rows",
    "cluster": "cli.cluster_command:cluster",
    "inspect": "cli.inspect:app",
}
"""Name of a command -> ``module:function``, or ``module:app`` for a group. The modules are cheap to import."""


class _Program(TyperGroup):
    """The group of commands; turns errors into messages and exit statuses."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SleuthError as error:
            if ctx.params["debug"]:
                raise
            print_error(error)
            raise typer.Exit(2) from None
        except BrokenPipeError:
            raise  # typer exits quietly when the reader of a pipe is gone
        except OSError as error:
            if ctx.params["debug"]:
                raise
            print_error(error)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            error_console().print("interrupted")
            _forget_interrupt()
            raise typer.Exit(130) from None


def _forget_interrupt() -> None:
    """Keep CPython from replacing our exit status.

    CPython remembers an interrupt raised out of an ``exec`` of source text (which is how dataclasses and named tuples
    create classes), even if caught, and then exits by the signal instead of the status. The next ``exec`` clears it.
    """
    exec("")


def make_app() -> typer.Typer:
    """The program with all its commands."""
    app = typer.Typer(
        name="sleuth",
        cls=_Program,
        callback=_root,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name, target in COMMANDS.items():
        module, _, attribute = target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program. ``--debug`` is accepted anywhere before a ``--``."""
    wait_briefly()
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    if "--debug" in given[:end]:
        given = ["--debug", *(word for word in given[:end] if word != "--debug"), *given[end:]]
    make_app()(args=given, prog_name="sleuth")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sleuth {sleuth.__version__}")
        raise typer.Exit


def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train language models to search: think, search, read, answer, and get better at it."""


if __name__ == "__main__":
    main()
