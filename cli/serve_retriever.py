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
    max_batch: Annotated[int, typer.Option(min=1, help="Maximum number of queries searched in one call.")] = 256,
    max_hits: Annotated[int, typer.Option(min=1, help="Maximum hits per request: queries times topk.")] = 100_000,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, help="Request timeout in seconds; by default 60, or 900 with a reranker.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A retriever setting: retriever.k1=1.2")
    ] = None,
) -> None:
    """Serve INDEX: POST /retrieve as in Search-R1, GET /health and GET /metrics. Ctrl-C stops it."""
    from retrieval.progress import build_progress
    from retrieval.service.config import ServiceLimits
    from sleuth.errors import MissingExtraError
    from workflows.retrievers import open_alone, retriever_settings

    try:
        from retrieval.service.server import serve
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "fastapi", "serve", "serving a retriever") from None

    settings = retriever_settings(index, overrides or [])
    retriever = open_alone(settings, progress=build_progress)
    console = error_console()

    def announce(url: str) -> None:
        console.print(f"serving {index} at {url} (Ctrl-C stops it)", markup=False, soft_wrap=True)

    limits = ServiceLimits(max_batch=max_batch, max_hits=max_hits, timeout_s=timeout or max(60.0, settings.patience_s))
    serve(retriever, host=host, port=port, limits=limits, on_ready=announce)
    console.print("stopped", soft_wrap=True)
