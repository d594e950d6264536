"""The verbs that put something onto boards: their options, their help, and what they print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitboard.cli.options import AcceptHostKey, Json, Stations, Wheelhouse
from splitboard.contract.errors import UserError

if TYPE_CHECKING:
    from boards.deploy.deploy import Deployed, Plan
    from boards.shell.shell import Shell
    from boards.stations import Station
    from splitboard.contract.bundle import Bundle


def deploy(
    bundle: Annotated[
        Path, typer.Argument(help="Bundle folder, from splitboard build; not with --rollback.", show_default=False)
    ],
    station: Annotated[
        str, typer.Argument(help="Name in stations.toml, user@host or emulated:KIND.", show_default=False)
    ] = "",
    wheelhouse: Wheelhouse = None,
    accept_host_key: AcceptHostKey = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Make the release before current again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look at the board and say what would be done.")] = False,
    stations: Stations = None,
    json: Json = False,
) -> None:
    """Puts a bundle and the edge runtime onto a board: sent, checked there, then made current in one step.

    What is there already is not sent again, and a transfer that broke is taken up. The board checks itself with the
    bundle's golden inputs before the switch; if that fails the old release stays. Where its Python lacks an interpreter
    for the bundle, wheels that this machine fetched are put into an environment of their own. Nothing runs as root.

    Examples:
      splitboard deploy mine.bundle pi1

      splitboard deploy mine.bundle pi@10.0.0.7 --accept-host-key --wheelhouse wheels/

      splitboard deploy --rollback pi1
    """
    from boards.lease import MINUTES, lease
    from boards.open_board import open_board
    from splitboard.contract.bundle import load_bundle

    named = _station_name(bundle, station, rollback)
    loaded = None if rollback else load_bundle(bundle)
    with open_board(named, stations, accept_host_key=accept_host_key) as (found, shell):
        if loaded is not None and dry_run:
            from boards.deploy.deploy import planned

            with planned(bundle, loaded, shell, found, wheelhouse) as plan:
                _say_plan(plan, shell, json)
            return
        owner = "splitboard deploy"
        with lease(shell, found.root, owner, MINUTES, python=found.python or "python3"):
            if loaded is None:
                from boards.deploy.deploy import rollback as roll_back

                made = roll_back(shell, found)
            else:
                made = _deploy(bundle, loaded, shell, found, wheelhouse)
    _say(made, json)


def _station_name(bundle: Path, station: str, rollback: bool) -> str:
    """The station: the second argument, or the only one of a rollback."""
    if rollback and station:
        raise UserError(f'--rollback takes no bundle, found "{bundle}"', [f"splitboard deploy --rollback {station}"])
    if not rollback and not station:
        raise UserError(f'deploy "{bundle}" to which station?', [f"splitboard deploy {bundle} STATION"])
    return station or str(bundle)


def _deploy(bundle: Path, loaded: Bundle, shell: Shell, found: Station, wheelhouse: Path | None) -> Deployed:
    from boards.deploy.deploy import deploy as put
    from splitboard.cli.console import steps

    with steps(f"splitboard deploy {found.name}") as show:
        return put(bundle, loaded, shell, found, wheelhouse=wheelhouse, progress=show)


def _say_plan(plan: Plan, shell: Shell, json: bool) -> None:
    from boards.deploy.deploy import outlook
    from splitboard.report.results import result_json

    seen = outlook(plan, shell)
    if json:
        typer.echo(result_json(seen))
        return
    typer.echo(f"Would send: {seen.send_files} of {seen.files} files, {seen.send_bytes / 1e6:.2f} MB")
    typer.echo(f"Would install: {', '.join(seen.wheels) or 'nothing'} (runtime: {seen.runtime})")
    typer.echo(f"Into: {seen.root} on {seen.station}")


def _say(made: Deployed, json: bool) -> None:
    from splitboard.report.results import result_json

    if json:
        typer.echo(result_json(made))
        return
    typer.echo(f"Sent: {made.sent_files} files, {made.sent_bytes / 1e6:.2f} MB")
    typer.echo(f"Current on {made.station}: release {made.release}; before: {made.previous or 'none'}")
    typer.echo(f"There: {made.python} {made.pyz} run --bundle {made.bundle} ...")


def register(app: typer.Typer) -> None:
    """Adds the verbs to the application."""
    app.command()(deploy)
