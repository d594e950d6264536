"""A board by the name that the user gives it: a station, an address, or an emulated one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from boards.emulated.shell import PREFIX, emulated_shell
from boards.shell.connect import connect
from boards.shell.shell import Shell
from boards.stations import Station
from boards.stations import station as find_station


@contextlib.contextmanager
def open_board(
    wanted: str,
    stations: Path | None = None,
    *,
    accept_host_key: bool = False,
    say: Callable[[str], None] | None = None,
) -> Iterator[tuple[Station, Shell]]:
    """A shell on a board, as long as the block lasts.

    Args:
        wanted: a name in ``stations.toml``, ``user@host[:port]``, or ``emulated:KIND[:RELEASE]``.
        stations: the stations file; ``None`` looks where `boards.stations.stations_file` says.
        accept_host_key: on first contact, write the board's host key down without asking.
        say: told what an emulated board fetches; ``None`` is nobody.

    Yields:
        The station, and its shell.

    Raises:
        UserError: there is no such board, or no way there.
    """
    if wanted.startswith(PREFIX):
        kind = wanted.removeprefix(PREFIX).partition(":")[0]
        yield Station(wanted, user="", host="", kind=kind), emulated_shell(wanted, say)
        return
    station = find_station(wanted, stations)
    with connect(station, accept_host_key=accept_host_key) as shell:
        yield station, shell
