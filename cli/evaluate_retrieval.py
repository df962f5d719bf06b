"""``sleuth evaluate-retrieval``: evaluates a retriever, or a TREC run file, against relevance judgements."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import counting, error_console, print_json
from sleuth.errors import ConfigError
from workflows.retrievers import HELP

if TYPE_CHECKING:
    from workflows.retrieval_evaluation import RetrievalReport

SEVERAL = "may be given several times"


def evaluate_retrieval(
    index: Annotated[str | None, typer.Argument(help=f"{HELP} Or give --run.", show_default=False)] = None,
    queries: Annotated[Path | None, typer.Option(help="Queries: BEIR or FlashRAG jsonl, or id<tab>text.")] = None,
    topics: Annotated[Path | None, typer.Option(help="Queries: TREC topics, SGML or XML (.gz).")] = None,
    topic_field: Annotated[
        str, typer.Option(help="What of a topic is the query: title, description, narrative, or title+description.")
    ] = "title",
    qrels: Annotated[Path | None, typer.Option(help="Judgements: BEIR's tsv or TREC's.")] = None,
    beir: Annotated[
        list[str] | None, typer.Option(metavar="NAME|FOLDER", help=f"A set of BEIR, by name or folder; {SEVERAL}.")
    ] = None,
    bright: Annotated[
        list[str] | None, typer.Option(metavar="NAME|FOLDER", help=f"A domain of BRIGHT, all, or a folder; {SEVERAL}.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="A suite of sets: unified, or a YAML file.")
    ] = None,
    mteb: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help=f"A task or benchmark of mteb, run by mteb on an encoder; {SEVERAL}."),
    ] = None,
    long: Annotated[bool, typer.Option("--long", help="BRIGHT: search whole documents.")] = False,
    split: Annotated[
        str | None,
        typer.Option(help="BEIR: the judgements to use; test by default, of msmarco dev.", show_default=False),
    ] = None,
    keep_itself: Annotated[
        bool, typer.Option("--keep-itself", help="BEIR: a query may find the passage with its own id.")
    ] = False,
    k: Annotated[
        int | None,
        typer.Option("-k", "--k", min=1, help="Hits per query; by default what the measures need, 1,000 for AP."),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Evaluate this TREC run instead of an index.")] = None,
    run_out: Annotated[Path | None, typer.Option(help="Write the run to this file, in TREC's layout.")] = None,
    per_query: Annotated[Path | None, typer.Option(help="Write every query's figures: a .tsv or .json file.")] = None,
    against: Annotated[Path | None, typer.Option(help="A TREC run to compare with, query by query.")] = None,
    passages: Annotated[str | None, typer.Option(help="The corpus of the run files, for Answer@k.")] = None,
    measures: Annotated[str | None, typer.Option(help="For example 'nDCG@10 R@20 Success@5'.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep each finished set in this folder; the same command goes on from there.")
    ] = None,
    mteb_json: Annotated[Path | None, typer.Option(help="Write results that mteb reads to this folder.")] = None,
    model_name: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Its name in mteb's results.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="mteb: batch size of the encoder.")] = 32,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave bad rows out of an index that is made, and count them.")
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A retriever setting: retriever.k1=1.2")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the metrics as one JSON object.")] = False,
) -> None:
    """Rank passages for judged queries and report trec_eval's measures with intervals.

    An index that does not exist is made from the passages of the set. With several sets, {set} in a path or setting
    stands for the name of each. If the queries have answers (FlashRAG's golden_answers), also reports DPR's top-k
    accuracy, Answer@k.
    """
    chosen = overrides or []
    if suite and (queries or topics or qrels or beir or bright or split):
        raise ConfigError("--suite names its sets and their judgements itself", "leave the other sets out")
    if mteb:
        others = (
            suite,
            queries,
            topics,
            qrels,
            beir,
            bright,
            split,
            k,
            run,
            run_out,
            per_query,
            against,
            measures,
            out,
        )
        if index is None or any(others):
            raise ConfigError("--mteb goes with an encoder or retriever, --set, --mteb-json and --json only")
        _run_mteb(index, chosen, mteb, model_name, mteb_json, batch_size, json)
        return
    if (index is None and not any(override.startswith("retriever=") for override in chosen)) == (run is None):
        raise ConfigError("give either an index or --run FILE")
    if run and (index or k or run_out or chosen):
        raise ConfigError("-k, --run-out and --set apply to an index only; a run file is used as it is")
    from cli.retrieval_tables import show_line, show_set, show_sets
    from workflows.retrieval_evaluation import as_json
    from workflows.retrieval_jobs import Job, evaluate_sets
    from workflows.retrieval_sets import Sources, read_sets
    from workflows.suites.ranking import load_ranking_suite, sets_of

    chosen_suite = load_ranking_suite(suite) if suite else None
    if chosen_suite is not None:
        measures = measures or chosen_suite.measures
    sources = Sources(queries, qrels, topics, topic_field, beir or (), bright or (), long, split, keep_itself)
    job = Job(index, chosen, run, k, measures, against, passages, run_out, per_query, out, skip_bad_rows)
    job = replace(job, mteb=mteb_json, model=model_name)
    sets = sets_of(chosen_suite) if chosen_suite is not None else read_sets(sources, _warn)
    what = str(run or index or "retriever")

    def tell(report: RetrievalReport) -> None:
        if len(sets) > 1:
            show_line(report)
            return
        show_set(report, what, against)
        if json:
            print_json(as_json([report]))

    reports = evaluate_sets(sets, job, tell, _warn, counting)
    if len(sets) > 1:
        show_sets(reports, what)
        if json:
            print_json(as_json(reports))


def _warn(text: str) -> None:
    error_console().print(f"[yellow]warning:[/] {text}", soft_wrap=True)


def _run_mteb(
    index: str, overrides: list[str], tasks: list[str], name: str | None, folder: Path | None, batch: int, json: bool
) -> None:
    from cli.retrieval_tables import show_tasks
    from workflows.mteb_tasks import run_tasks

    scores = run_tasks(index, overrides, tasks, name, folder, batch)
    show_tasks(scores, index)
    if json:
        print_json({found.task: {found.measure: found.score, "scores": found.scores} for found in scores})
