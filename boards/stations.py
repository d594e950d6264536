"""The boards on the user's desk: ``stations.toml``, one table each; it is the user's own file and is not committed.

```toml
[pi1]
address = "pi@10.0.0.7"
kind = "rpi5"
key = "~/.ssh/id_ed25519"
```
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boards.kinds import load_kind
from splitboard.contract.decode import decode
from splitboard.contract.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

STATIONS_VARIABLE = "SPLITBOARD_STATIONS"
_HERE = Path("stations.toml")
_AT_HOME = Path("~/.config/splitboard/stations.toml")
SSH_PORT = 22
_LARGEST_PORT = 65535

_ADDRESS = re.compile(
    r"(?P<user>[A-Za-z_][\w.-]*)@(?P<host>\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[A-Za-z0-9][\w.-]*)(?::(?P<port>\d{1,5}))?"
)
"""``user@host``, ``user@host:port`` or, for IPv6, ``user@[fe80::1%eth0]:port``."""


@dataclass(frozen=True)
class Station:
    """One board on the desk.

    Attributes:
        name: in ``stations.toml``; of an address that was given instead, that address.
        user: to log in as.
        host: name or address; IPv6 without brackets.
        port: of its ssh.
        kind: name of its kind; ``None`` where that is still to be detected.
        key: path of the private key; ``None`` leaves it to the agent and the usual files.
        root: folder on the board that everything goes into; relative to the user's home there, unless absolute.
        known_hosts: path of the file with its host key; ``None`` is the user's own.
        meter: the meter to read; ``None`` is the kind's.
        python: interpreter on the board; ``None`` is its ``python3``.
    """

    name: str
    user: str
    host: str
    port: int = SSH_PORT
    kind: str | None = None
    key: str | None = None
    root: str = "splitboard"
    known_hosts: str | None = None
    meter: str | None = None
    python: str | None = None


@dataclass(frozen=True)
class _Entry:
    """One table of ``stations.toml``: a station as its user writes it."""

    address: str
    port: int | None = None
    kind: str | None = None
    key: str | None = None
    root: str = "~/splitboard"
    known_hosts: str | None = None
    meter: str | None = None
    python: str | None = None


def station(wanted: str, file: Path | None = None) -> Station:
    """The station of a name, or an ad-hoc one of an address.

    Args:
        wanted: a name in ``stations.toml``, ``user@host`` or ``user@host:port``.
        file: ``--stations``; ``None`` looks where ``stations_file`` says.

    Raises:
        UserError: there is no such station, the nearest is named; or the file does not hold.
    """
    if "@" in wanted:
        return _at(wanted)
    path = stations_file(file)
    advice = ['an address does without the file: "pi@10.0.0.7"']
    if path is None:
        raise UserError(
            f'unknown station "{wanted}": there is no "{_HERE}" here, nor "{_AT_HOME}"',
            [f'write one: [{wanted}] address = "pi@10.0.0.7"', *advice],
        )
    known = read_stations(path)
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.4)
        tries = [f'"{near[0]}" is the nearest'] if near else []
        raise UserError(
            f'unknown station "{wanted}" in "{path}"', [*tries, f"stations: {', '.join(known) or 'none'}", *advice]
        )
    return known[wanted]


def stations_file(named: Path | None = None) -> Path | None:
    """The file that the stations are read from, ``None`` where there is none.

    The file that is named, else ``$SPLITBOARD_STATIONS``, else ``stations.toml`` in the current folder, else
    ``~/.config/splitboard/stations.toml``.

    Raises:
        UserError: the file that was named is not there.
    """
    if named is None and os.environ.get(STATIONS_VARIABLE):
        named = Path(os.environ[STATIONS_VARIABLE])
    if named is not None:
        if not named.is_file():
            raise UserError(f'no stations file "{named}"', [f"--stations FILE, or set {STATIONS_VARIABLE}"])
        return named
    return next((path for path in (_HERE, _AT_HOME.expanduser()) if path.is_file()), None)


def read_stations(path: Path) -> dict[str, Station]:
    """All stations of a file by name, in its order.

    Raises:
        UserError: the file cannot be read, is not TOML, has an unknown key or kind, or an address that is none.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f'cannot read "{path}": {error.strerror}') from error
    except ValueError as error:
        raise UserError(
            f'"{path}" is not valid TOML: {error}', ['one table for each board: [pi1] and address = "pi@10.0.0.7"']
        ) from error
    return {name: _station(name, table, path) for name, table in tables.items()}


def _station(name: str, table: Any, path: Path) -> Station:
    where = f"{path}: [{name}]"
    if not isinstance(table, Mapping):
        raise UserError(f'{where}: expected a table, found "{table}"', [f'[{name}] address = "pi@10.0.0.7"'])
    entry = decode(_Entry, table, where)
    try:
        return _entered(name, entry, path)
    except UserError as error:
        raise UserError(f"{where}: {error.message}", error.tries) from error


def _entered(name: str, entry: _Entry, path: Path) -> Station:
    found = _at(entry.address)
    given = _ADDRESS.fullmatch(entry.address)
    if entry.port is not None and given is not None and given["port"] is not None:
        raise UserError(f'the port is in "{entry.address}" and in port = {entry.port}', ["say it once"])
    if entry.kind is not None:
        load_kind(entry.kind)
    return Station(
        name=name,
        user=found.user,
        host=found.host,
        port=found.port if entry.port is None else _port(entry.port),
        kind=entry.kind,
        key=_file(entry.key, path),
        root=entry.root.removeprefix("~/"),
        known_hosts=_file(entry.known_hosts, path),
        meter=entry.meter,
        python=entry.python,
    )


def _file(named: str | None, stations: Path) -> str | None:
    """A path in the file, relative to the file's own folder."""
    return None if named is None else str(stations.parent / Path(named).expanduser())


def _at(address: str) -> Station:
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(f'"{address}" is no address', ["user@host or user@host:port, e.g. pi@10.0.0.7"])
    return Station(
        name=address,
        user=match["user"],
        host=match["host"].strip("[]"),
        port=SSH_PORT if match["port"] is None else _port(int(match["port"])),
    )


def _port(number: int) -> int:
    if not 0 < number <= _LARGEST_PORT:
        raise UserError(f'"{number}" is no port', [f"1 to {_LARGEST_PORT}"])
    return number
