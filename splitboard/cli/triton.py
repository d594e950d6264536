"""``splitboard triton``: its options, its help, and what it prints."""

from __future__ import annotations

from typing import Annotated

import typer

from splitboard.cli.options import BundleFolder, Json, Out
from splitboard.contract.errors import UserError


def triton(
    bundle: BundleFolder,
    out: Out,
    backend: Annotated[
        str, typer.Option(help="onnxruntime (in NVIDIA's images), python (checks the pair too) or tensorrt.")
    ] = "onnxruntime",
    threads: Annotated[int, typer.Option(min=1, help="Of ONNX Runtime, for one inference.")] = 1,
    instances: Annotated[int, typer.Option(min=1, help="Inferences of one model at the same time.")] = 1,
    json: Json = False,
) -> None:
    """The server halves of a bundle as a model repository of NVIDIA Triton, which the same edge talks to.

    With --backend tensorrt the repository lacks its engines: they are made where Triton runs, by the commands printed.

    Examples:
      splitboard triton mine.bundle -o repository

      splitboard triton mine.bundle --backend python --instances 2 -o repository
    """
    from runtime_server.triton import Backend, write_repository
    from splitboard.report.outputs import TritonOutput
    from splitboard.report.results import result_json

    known = [one.value for one in Backend]
    if backend not in known:
        raise UserError(f'unknown back end "{backend}"', [f"--backend {name}" for name in known])
    made = write_repository(bundle, out, Backend(backend), threads, instances)
    if json:
        typer.echo(result_json(TritonOutput(str(out), made.bundle_sha256, made.backend, made.models, made.engines)))
        return
    for name in made.models:
        typer.echo(name)
    for command in made.engines.values():
        typer.echo(f"To be run in {out}: {command}")
    typer.echo(f"Repository: {out}")
