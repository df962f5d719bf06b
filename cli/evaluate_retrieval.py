"""``sleuth evaluate-retrieval``: evaluates a retriever, or a TREC run file, against relevance judgements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import counting, error_console, print_json
from sleuth.errors import ConfigError
from workflows.retrievers import HELP

if TYPE_CHECKING:
    from workflows.retrieval_evaluation import RetrievalReport, Task

DEPTH = 100


def evaluate_retrieval(
    index: Annotated[str | None, typer.Argument(help=f"{HELP} Or give --run.", show_default=False)] = None,
    queries: Annotated[Path | None, typer.Option(help="Queries: BEIR or FlashRAG jsonl, or id<tab>text.")] = None,
    qrels: Annotated[Path | None, typer.Option(help="Judgements: BEIR's tsv or TREC's.")] = None,
    beir: Annotated[Path | None, typer.Option(help="A BEIR folder: its queries.jsonl and qrels/SPLIT.tsv.")] = None,
    split: Annotated[str, typer.Option(help="Which split's judgements of the BEIR folder to use.")] = "test",
    k: Annotated[int | None, typer.Option("-k", "--k", min=1, help=f"Hits per query; {DEPTH} by default.")] = None,
    run: Annotated[Path | None, typer.Option(help="Evaluate this TREC run instead of an index.")] = None,
    run_out: Annotated[Path | None, typer.Option(help="Write the run to this file, in TREC's layout.")] = None,
    against: Annotated[Path | None, typer.Option(help="A TREC run to compare with, query by query.")] = None,
    passages: Annotated[str | None, typer.Option(help="The corpus of the run files, for Answer@k.")] = None,
    measures: Annotated[str | None, typer.Option(help="For example 'nDCG@10 R@20 Success@5'.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A retriever setting: retriever.k1=1.2")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the metrics as one JSON object.")] = False,
) -> None:
    """Rank passages for judged queries and report trec_eval's measures with intervals.

    If the queries have answers (FlashRAG's golden_answers), also reports DPR's top-k accuracy, Answer@k.
    """
    if (index is None) == (run is None):
        raise ConfigError("give either an index or --run FILE")
    if run and (k or run_out or overrides):
        raise ConfigError("-k, --run-out and --set apply to an index only; a run file is used as it is")
    from retrieval.evaluation.runs import read_run, write_run
    from workflows.retrieval_evaluation import Found, choose_measures, compare, read_task, search_index

    task = read_task(queries, qrels, beir, split, _warn)
    names = choose_measures(measures, task)
    other = Found(read_run(against), known=False) if against else None
    if run:
        first = Found(read_run(run), known=False)
    else:
        first, names = search_index(
            str(index),
            overrides or [],
            task,
            k or DEPTH,
            names,
            refuse=measures is not None,
            warn=_warn,
            counting=counting,
        )
    report = compare(task, names, first, other, passages, _warn)
    _print(report, task, str(run or index), against)
    if json:
        print_json(report.to_dict())
    if run_out:  # last: an unwritable file must not lose figures that took an hour
        write_run(run_out, first.run)


def _warn(text: str) -> None:
    error_console().print(f"[yellow]warning:[/] {text}", soft_wrap=True)


def _print(report: RetrievalReport, task: Task, what: str, against: Path | None) -> None:
    from rich.table import Table
    from rich.text import Text

    from sleuth.statistics import explained

    console = error_console()
    console.print(Text(f"{what}: {report.queries} judged queries", style="bold"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("measure")
    table.add_column("mean [95 %]", justify="right", no_wrap=True)
    if against:
        table.add_column(str(against), justify="right")
        table.add_column("difference [95 %]", justify="right", no_wrap=True)
        table.add_column("p", justify="right")
    for name, mean in report.means.items():
        bounds = report.intervals[name]
        cells = [name, f"{mean:.4f} [{bounds.low:.4f}, {bounds.high:.4f}]"]
        if found := report.differences.get(name):
            change = f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
            cells += [f"{report.other[name]:.4f}", change, f"{found.p_value:.4f}"]
        table.add_row(*map(Text, cells))
    console.print(table)
    intervals = {name: found.method for name, found in report.intervals.items()}
    differences = {name: found.method for name, found in report.differences.items()}
    for what, methods in (("95 % intervals", intervals), ("differences", differences)):
        if methods:
            console.print(explained(what, [methods], "queries"), soft_wrap=True, highlight=False)
    if report.answered:
        console.print(f"Answer@k over the {report.answered} queries with known answers", soft_wrap=True)
    if any(task.qrels.values()) and not any(report.means.values()):
        console.print(
            "[yellow]warning:[/] no judged passage was found at all: do the passage ids match?", soft_wrap=True
        )
