"""The verb that times edge graphs alone, by NVIDIA's trtexec: its options, its help, and what it prints."""

from __future__ import annotations

from typing import Annotated

import typer

from splitboard.cli.options import AcceptHostKey, BundleFolder, Json, Out, Stations


def trtexec(
    bundle: BundleFolder,
    out: Out,
    board: Annotated[str, typer.Option(help="A Jetson: name in stations.toml or user@host.", show_default=False)],
    splits: Annotated[str, typer.Option("--splits", "--split", help="Ids, with commas, or all.")] = "all",
    stations: Stations = None,
    accept_host_key: AcceptHostKey = False,
    json: Json = False,
) -> None:
    """Latency of the edge graphs alone on a Jetson, by NVIDIA's trtexec: nothing is sent, answered or metered.

    It is what JetPack 4 allows, whose Python 3.6 runs no edge runtime. On other Jetsons it is a cross-check of what
    bench calls edge. What it writes are no run records. Clocks are held by hand, on the board.

    Examples:
      splitboard trtexec nano.bundle --board nano -o runs/nano.jsonl

      splitboard trtexec orin.bundle --board orin --splits s09 -o runs/orin.jsonl
    """
    from boards.bench.edge_alone import edge_times, measurable_splits, write_edge_times
    from boards.open_board import open_board
    from splitboard.cli.console import steps
    from splitboard.cli.tables import console
    from splitboard.contract.bundle import load_bundle
    from splitboard.report.edge_alone import print_alone, summarise_alone
    from splitboard.report.results import result_json

    loaded = load_bundle(bundle)
    chosen = measurable_splits(loaded, [one.strip() for one in splits.split(",")])
    with open_board(board, stations, accept_host_key=accept_host_key) as (station, shell), steps("trtexec") as show:
        times = edge_times(shell, station, bundle, loaded, chosen, show)
    write_edge_times(out, times)
    summary = summarise_alone(str(out), times)
    if json:
        typer.echo(result_json(summary))
    else:
        print_alone(console(), summary)
        typer.echo(f"\nTimes: {out}")


def register(app: typer.Typer) -> None:
    """Adds the verb to the application."""
    app.command()(trtexec)
