"""The verb that measures: its options, its help, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitboard.cli.options import AcceptHostKey, BundleFolder, Data, Json, Out, Stations, Wheelhouse
from splitboard.contract.errors import SplitboardError, UserError

if TYPE_CHECKING:
    from boards.bench.request import BenchRequest
    from splitboard.contract.bundle import Bundle
    from splitboard.contract.record import RunRecord

_LOCAL = "local"


def bench(
    bundle: BundleFolder,
    data: Data,
    out: Out,
    board: Annotated[
        str, typer.Option(help="local: this machine; station, user@host or emulated:KIND; several with commas.")
    ] = _LOCAL,
    server: Annotated[str | None, typer.Option(help="URL of splitboard serve; without it one is started here.")] = None,
    split: Annotated[str, typer.Option("--split", "--splits", help="Comma-separated ids, or all.")] = "all",
    threads: Annotated[int, typer.Option(min=1, help="Of the edge engine.")] = 1,
    warmup: Annotated[int, typer.Option(min=0, help="Inferences per split that are discarded.")] = 20,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images.")] = None,
    energy: Annotated[bool, typer.Option(help="Also measure energy, where there is a meter.")] = False,
    require_energy: Annotated[
        bool, typer.Option("--require-energy", help="Energy, or exit code 2 where no meter tells it.")
    ] = False,
    meter: Annotated[
        str | None, typer.Option(help="Meter to read: auto, ina3221, pmic, csv:PATH, pkg.module:Meter, ...")
    ] = None,
    cross_check: Annotated[str | None, typer.Option(help="A second meter over the same windows.")] = None,
    windows: Annotated[int | None, typer.Option(min=1, help="Energy windows per split.")] = None,
    window_s: Annotated[float | None, typer.Option(help="Length of an energy window, in seconds.")] = None,
    governor: Annotated[
        str | None, typer.Option(help="Of the processor while it is measured; put back afterwards.")
    ] = None,
    power_mode: Annotated[
        str | None, typer.Option(help="Of a Jetson, by name, e.g. 15W (boards show KIND); put back afterwards.")
    ] = None,
    sudo: Annotated[bool, typer.Option("--sudo", help="Set governor and power mode as root, by sudo -n.")] = False,
    start_temperature: Annotated[
        float | None, typer.Option(help="Degrees Celsius that the board must have cooled down to before it begins.")
    ] = None,
    cool_down: Annotated[float | None, typer.Option(help="Longest wait for that, in seconds.")] = None,
    coding: Annotated[str, typer.Option(help="Of requests: none, zstd, or jpeg (remote only).")] = "none",
    token_file: Annotated[Path | None, typer.Option(help="Holds the server's bearer token.")] = None,
    ca: Annotated[Path | None, typer.Option(help="Certificates to trust for https, PEM.")] = None,
    stations: Stations = None,
    accept_host_key: AcceptHostKey = False,
    wheelhouse: Wheelhouse = None,
    json: Json = False,
) -> None:
    """Latency, energy and accuracy of every split, measured; writes run records (one JSON object a line).

    On a board: it is held for this run alone, the bundle is deployed where it is not there yet and checks itself, and
    the board's own bench runs; it ends, and puts its clocks back, also when the connection breaks. Without a route to
    the server the board reaches it through the connection. What an emulated board takes tells nothing.

    Examples:
      splitboard bench mine.bundle --data test.npz -o runs/today.jsonl

      splitboard bench mine.bundle --data test.npz --coding zstd --server http://10.0.0.5:8000 -o runs/zstd.jsonl

      splitboard bench mine.bundle --data test.npz --board pi1,pi2 --energy --meter ina226 -o runs/pi.jsonl

      splitboard bench mine.bundle --data test.npz --board emulated:rpi5 --limit 5 -o runs/emulated.jsonl
    """
    import contextlib

    from boards.bench.request import BenchRequest, Energy, Steady
    from splitboard.cli.bench import serving
    from splitboard.contract.bundle import load_bundle
    from splitboard.contract.folder import check_file
    from splitboard.contract.record import BEGINNING

    check_file(out, BEGINNING)
    boards = _boards(board)
    loaded = load_bundle(bundle)
    wanted = [part.strip() for part in split.split(",")]
    for split_id in wanted:
        if split_id != "all":
            loaded.split(split_id)
    measured = Energy(require_energy, meter, cross_check, windows, window_s)
    if not (energy or require_energy) and measured != Energy():
        options = {"--meter": meter, "--cross-check": cross_check, "--windows": windows, "--window-s": window_s}
        given = next(option for option, value in options.items() if value is not None)
        raise UserError(f'"{given}" is of --energy, which is not asked for', ["--energy", "--require-energy"])
    if sudo and governor is None and power_mode is None:
        raise UserError('"--sudo" is of --governor and --power-mode, and neither is given', ["--governor performance"])
    with serving(bundle) if server is None else contextlib.nullcontext(server) as url:
        request = BenchRequest(
            data=data,
            server=url,
            splits=wanted,
            out=out,
            n_warmup=warmup,
            threads=threads,
            limit=limit,
            energy=measured if energy or require_energy else None,
            coding=coding,
            token_file=token_file,
            ca=ca,
            steady=Steady(governor, power_mode, sudo, start_temperature, cool_down),
        )
        if boards == (_LOCAL,):
            found: Mapping[str, tuple[Path, list[RunRecord]] | SplitboardError] = _here(bundle, loaded, request)
        else:
            from splitboard.cli.bench import Boards, bench_boards

            places = Boards(boards, stations, accept_host_key, wheelhouse)
            found = bench_boards(bundle, loaded, request, places)
    _say({name: one for name, one in found.items() if not isinstance(one, SplitboardError)}, loaded, json)
    for one in found.values():
        if isinstance(one, SplitboardError):
            raise one


def _boards(wanted: str) -> tuple[str, ...]:
    """The boards by name."""
    names = tuple(part.strip() for part in wanted.split(","))
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f'the board "{twice}" is named twice', ["name each board once"])
    if not all(names):
        raise UserError(f'"{wanted}" names an empty board', ["--board pi1,pi2"])
    if _LOCAL in names and len(names) > 1:
        raise UserError(f'"{_LOCAL}" is measured alone, found "{wanted}"', ["two runs, one after the other"])
    return names


def _here(bundle: Path, loaded: Bundle, request: BenchRequest) -> dict[str, tuple[Path, list[RunRecord]]]:
    from splitboard.cli.bench import bench as run_bench

    return {_LOCAL: (request.out, run_bench(bundle, loaded, request))}


def _say(found: Mapping[str, tuple[Path, list[RunRecord]]], loaded: Bundle, json: bool) -> None:
    from splitboard.cli.tables import console
    from splitboard.contract.record import FLOAT_REFERENCE
    from splitboard.report.outputs import BenchOutput
    from splitboard.report.results import result_json, summarise
    from splitboard.report.table import print_results

    for name, (file, records) in found.items():
        summary = summarise(records, loaded)
        if json:
            typer.echo(result_json(BenchOutput(str(file), summary.splits)))
            continue
        if name != _LOCAL:
            typer.echo(f"\n{name}")
        print_results(console(), summary)
        halves = [record for record in records if record.split != FLOAT_REFERENCE]
        for engine in sorted({record.engine for record in halves if record.engine.startswith("onnxruntime")}):
            typer.echo(f"edge halves simulated by {engine}: TensorRT runs them on the board, and has other times")
        typer.echo(f"\nRecords: {file}")


def register(app: typer.Typer) -> None:
    """Adds the verb to the application."""
    app.command()(bench)
