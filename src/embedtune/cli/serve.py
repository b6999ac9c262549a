"""embedtune serve."""

from __future__ import annotations

from typing import Annotated

import typer

from embedtune.cli.options import Debug, Quiet
from embedtune.cli.terminal import report_errors
from embedtune.serve.limits import Limits


def serve(
    bundles: Annotated[
        list[str],
        typer.Argument(metavar="BUNDLE...", help="Bundle folders, each named by its folder or as name=path."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    max_texts: Annotated[int, typer.Option(help="Texts per request.")] = Limits.max_texts,
    max_chars: Annotated[int, typer.Option(help="Characters per text.")] = Limits.max_chars,
    max_body_bytes: Annotated[int, typer.Option(help="Bytes per request.")] = Limits.max_body_bytes,
    queue_texts: Annotated[int, typer.Option(help="Texts that may wait.")] = Limits.queue_texts,
    max_delay_ms: Annotated[
        float, typer.Option(help="Milliseconds that the texts before a request may be expected to take.")
    ] = Limits.max_delay_ms,
    request_seconds: Annotated[
        float, typer.Option(help="Seconds for a request's head to come, and for its body.")
    ] = Limits.request_seconds,
    max_connections: Annotated[int, typer.Option(help="Connections at once.")] = Limits.max_connections,
    batch_tokens: Annotated[int, typer.Option(help="Tokens read at once.")] = Limits.batch_tokens,
    max_wait_ms: Annotated[
        float, typer.Option(help="Milliseconds that a text waits for others to be read with.")
    ] = Limits.max_wait_ms,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="float32, bfloat16, …; the bundle's own by default.")
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Answer requests with bundles: labels, embeddings, and a page to try them. EMBEDTUNE_API_KEY sets a key."""
    import logging

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("embedtune.serve").setLevel(logging.WARNING if quiet else logging.INFO)
    with report_errors(debug):
        from embedtune.serve.run import serve as serve_bundles

        limits = Limits(
            max_texts,
            max_chars,
            max_body_bytes,
            queue_texts,
            max_delay_ms,
            request_seconds,
            max_connections,
            batch_tokens,
            max_wait_ms,
        )
        serve_bundles(
            bundles,
            host=host,
            port=port,
            limits=limits,
            device=device,
            precision=precision,
            announce=lambda line: typer.echo(f"Serving {line}", err=True),
        )
