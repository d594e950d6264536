"""The verbs about the server half: their options, their help, and what they print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splitboard.cli.options import Json


def serve(
    bundles: Annotated[list[Path], typer.Argument(help="One or more bundle folders.", show_default=False)],
    host: Annotated[str, typer.Option(help="Address to listen on; loopback unless you say otherwise.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 lets the system choose.")] = 8000,
    grpc: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the protocol's gRPC form, beside HTTP.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of one inference.")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Inferences at the same time; default: what fills the cores.")
    ] = None,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are refused as overloaded.")] = 64,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Waiting requests of one model that are computed together.")
    ] = 1,
    token_file: Annotated[
        Path | None, typer.Option(help="File with a token that every request must carry: Authorization: Bearer.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain (PEM): HTTPS in place of HTTP.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's private key (PEM).")] = None,
    json: Json = False,
) -> None:
    """Serves the server halves of bundles (Open Inference Protocol v2) until Ctrl-C or SIGTERM.

    What has begun by then is finished; new requests are refused as draining. /metrics is for Prometheus.

    Examples:
      splitboard serve mine.bundle --port 8000

      splitboard serve mine.bundle other.bundle --host 0.0.0.0 --token-file token --tls-cert chain.pem --tls-key key.pem
    """
    from runtime_server.server import Addresses, ServeOptions
    from runtime_server.server import serve as run_server
    from splitboard.report.outputs import ServeOutput
    from splitboard.report.results import result_json

    def ready(at: Addresses) -> None:
        if json:
            typer.echo(result_json(ServeOutput(at.url, at.grpc)))
        else:
            also = f" and gRPC at {at.grpc}" if at.grpc is not None else ""
            typer.echo(f"Serving {', '.join(map(str, bundles))} at {at.url}{also}")

    options = ServeOptions(
        host=host,
        port=port,
        grpc_port=grpc,
        threads=threads,
        workers=workers,
        queue=queue,
        max_batch=max_batch,
        token_file=token_file,
        tls_cert=tls_cert,
        tls_key=tls_key,
    )
    run_server(bundles, options, ready)
