"""``sleuth serve-retriever``: a retriever over HTTP, for agents on other machines and for Search-R1's clients."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.console import error_console
from workflows.retrievers import HELP


def serve_retriever(
    index: Annotated[str, typer.Argument(help=HELP)],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all interfaces.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")] = 8000,
    topk: Annotated[int | None, typer.Option(min=1, help="Hits per query of requests that name no topk. [3]")] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, help="Queries searched in one call; larger requests take several. [256]")
    ] = None,
    max_queries: Annotated[int | None, typer.Option(min=1, help="Queries per request. [8192]")] = None,
    max_topk: Annotated[int | None, typer.Option(min=1, help="Hits per query. [1000]")] = None,
    max_hits: Annotated[int | None, typer.Option(min=1, help="Hits per request: queries times topk. [100000]")] = None,
    max_pending: Annotated[
        int | None, typer.Option(min=1, help="Queries that may wait; later ones get 503. [65536]")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=0.001, help="Seconds for every --max-batch queries of a request. [60; 900 with a reranker]"),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting: retriever.k1=1.2, limits.max_body_bytes=1000000"),
    ] = None,
) -> None:
    """Serve INDEX: POST /retrieve as in Search-R1, GET /health and GET /metrics. Ctrl-C stops it."""
    from sleuth.errors import MissingExtraError
    from workflows.retrievers import open_alone, retriever_settings, service_limits

    try:
        from retrieval.service.server import serve
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "fastapi", "serve", "serving a retriever") from None

    of_limits = [override for override in overrides or [] if override.startswith("limits.")]
    settings = retriever_settings(index, [override for override in overrides or [] if override not in of_limits])
    given = {
        "default_topk": topk,
        "max_batch": max_batch,
        "max_queries": max_queries,
        "max_topk": max_topk,
        "max_hits": max_hits,
        "max_pending": max_pending,
        "timeout_s": timeout,
    }
    limits = service_limits(settings, given, of_limits)
    retriever = open_alone(settings)
    console = error_console()

    def announce(url: str) -> None:
        console.print(f"serving {index} at {url} (Ctrl-C stops it)", markup=False, soft_wrap=True)

    serve(retriever, host=host, port=port, limits=limits, on_ready=announce)
    console.print("stopped", soft_wrap=True)
