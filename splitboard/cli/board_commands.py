"""The verbs about boards: their options, their help, and what they print."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from splitboard.cli.options import AcceptHostKey, Json, Stations
from splitboard.contract.errors import EXIT_PASS, EXIT_USER_ERROR, UserError

StationName = Annotated[
    str,
    typer.Argument(
        metavar="STATION", help="A name in stations.toml, user@host[:port] or emulated:KIND.", show_default=False
    ),
]
_boards = typer.Typer(invoke_without_command=True, rich_markup_mode="rich")


@_boards.callback()
def boards(context: typer.Context, json: Json = False) -> None:
    """The kinds of board that a bundle can be built for; without a further word, all of them.

    The boards on your desk are stations, named in your stations.toml.

    Examples:
      splitboard boards

      splitboard boards show rpi5

      splitboard boards detect pi@10.0.0.7

      splitboard boards stations
    """
    if context.invoked_subcommand is not None:
        if json:
            raise UserError('"--json" stands behind what it is for', [f"{context.invoked_subcommand} ... --json"])
        return
    from boards.kinds import kind_names, load_kind
    from splitboard.cli.tables import print_kinds

    kinds = tuple(load_kind(name) for name in kind_names())
    if json:
        from splitboard.report.outputs import BoardsOutput
        from splitboard.report.results import result_json

        typer.echo(result_json(BoardsOutput(kinds)))
    else:
        print_kinds(kinds)


@_boards.command()
def show(
    kind: Annotated[str, typer.Argument(help="Name of a kind: splitboard boards lists them.", show_default=False)],
    json: Json = False,
) -> None:
    """All that is known of a kind: what runs on it and what does not and why, its meter, clocks, and how it is flashed.

    Example:
      splitboard boards show jetson-orin-nano
    """
    from boards.kinds import load_kind
    from splitboard.cli.board_tables import print_kind

    loaded = load_kind(kind)
    if json:
        from splitboard.report.outputs import BoardsOutput
        from splitboard.report.results import result_json

        typer.echo(result_json(BoardsOutput((loaded,))))
    else:
        print_kind(loaded)


@_boards.command()
def detect(
    station: StationName, stations: Stations = None, accept_host_key: AcceptHostKey = False, json: Json = False
) -> None:
    """Names the kind of a board, from its device tree, over ssh.

    Examples:
      splitboard boards detect pi@10.0.0.7

      splitboard boards detect pi1 --stations lab.toml
    """
    from boards.detect import detect as detect_kind
    from boards.kinds import load_kind
    from boards.open_board import open_board

    with open_board(station, stations, accept_host_key=accept_host_key) as (found, shell):
        detected = detect_kind(shell)
    if found.kind not in (None, detected.kind):
        detected = replace(detected, notes=(*detected.notes, f"it was named {found.kind}, which is what counts"))
    if json:
        from splitboard.report.outputs import DetectOutput
        from splitboard.report.results import result_json

        typer.echo(result_json(DetectOutput(detected)))
    else:
        from splitboard.cli.board_tables import print_detected

        print_detected(detected, load_kind(detected.kind))


@_boards.command("stations")
def list_stations(stations: Stations = None, json: Json = False) -> None:
    """The boards on your desk, as your stations.toml names them; none of them is asked.

    Example:
      splitboard boards stations
    """
    from boards.stations import read_stations, stations_file

    path = stations_file(stations)
    if path is None:
        raise UserError('there is no "stations.toml"', ['write one: [pi1] and address = "pi@10.0.0.7"'])
    known = tuple(read_stations(path).values())
    if json:
        from splitboard.report.outputs import StationsOutput
        from splitboard.report.results import result_json

        typer.echo(result_json(StationsOutput(str(path), known)))
    else:
        from splitboard.cli.board_tables import print_stations

        print_stations(path, known)


@_boards.command()
def free(
    station: StationName,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    stations: Stations = None,
    accept_host_key: AcceptHostKey = False,
) -> None:
    """Takes a board away from a run that holds it and is gone; one that is not fails at its next step.

    A board is held by one run at a time and gets free by itself, 15 minutes after the run was last heard of.

    Example:
      splitboard boards free pi1
    """
    from boards.lease import Holder, break_lease
    from boards.open_board import open_board

    def agreed(holder: Holder, left_s: float) -> bool:
        said = f'"{holder.owner}" (process {holder.pid} on {holder.host}) has {station} for {left_s:.0f} s more.'
        return yes or typer.confirm(f"{said} Take it away?", err=True)

    with open_board(station, stations, accept_host_key=accept_host_key) as (found, shell):
        was = break_lease(shell, found.root, agreed, python=found.python or "python3")
    typer.echo(f"{station} was taken from {was.owner}." if was else f"{station} was left as it is.")


def doctor(
    station: StationName,
    bundle: Annotated[Path | None, typer.Option(help="Bundle that the board is to run: space, memory, kind.")] = None,
    stations: Stations = None,
    accept_host_key: AcceptHostKey = False,
    json: Json = False,
) -> int:
    """What is missing or wrong on a board, and the command that mends it; nothing is changed there.

    Interpreter and numpy, system, clocks, throttling, sensors, disk, memory; on a Jetson also TensorRT, CUDA and
    JetPack. Exit code 3 if something is in the way.

    Examples:
      splitboard doctor pi1 --bundle mine.bundle

      splitboard doctor pi@10.0.0.7 --json
    """
    from boards.doctor.doctor import doctor as examine
    from boards.open_board import open_board
    from splitboard.contract.bundle import load_bundle

    loaded = None if bundle is None else load_bundle(bundle)
    with open_board(station, stations, accept_host_key=accept_host_key) as (found, shell):
        findings = examine(shell, found, loaded)
    if json:
        from splitboard.report.outputs import DoctorOutput
        from splitboard.report.results import result_json

        typer.echo(result_json(DoctorOutput(findings)))
    else:
        from splitboard.cli.board_tables import print_findings

        print_findings(findings)
    return EXIT_USER_ERROR if findings.in_the_way else EXIT_PASS


def register(app: typer.Typer) -> None:
    """Adds the verbs to the application."""
    app.add_typer(_boards, name="boards")
    app.command()(doctor)
