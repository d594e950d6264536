"""The way in to a station through ssh. Whom we talk to is known by its host key, never taken on trust in silence."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import asyncssh

from boards.shell.background import Background
from boards.shell.ssh import SshShell
from boards.stations import SSH_PORT, Station
from splitboard.contract.errors import UserError

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10.0
_ASK_AGAIN_S = 3.0
"""For the host key of a server that hung up: well within the time of the whole login, so that the cause is told."""
_KEEPALIVE_S = 2.0
_KEEPALIVE_MISSED = 3
"""So a board that restarts is noticed in 8 s; it says nothing when it goes."""

_USERS_KNOWN_HOSTS = Path("~/.ssh/known_hosts")
_NO_ROUTE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT)


@contextlib.contextmanager
def logged_in(station: Station, accept_host_key: bool) -> Iterator[SshShell]:
    """A shell on a station, as long as the block lasts; see `boards.shell.connect.connect`."""
    with Background() as background:
        _meet(background, station, accept_host_key)
        connection = _log_in(background, station)
        try:
            yield SshShell(station.name, background, connection)
        finally:
            background.call(_close(connection))


def _known_hosts(station: Station) -> Path:
    return _USERS_KNOWN_HOSTS.expanduser() if station.known_hosts is None else Path(station.known_hosts)


def _meet(background: Background, station: Station, accept: bool) -> None:
    """On first contact, decides about the host key and writes it down."""
    path = _known_hosts(station)
    if _is_known(path, station):
        return
    key = _shown_key(background, station)
    fingerprint = key.get_fingerprint()
    if not accept and not _agreed(station, fingerprint):
        raise UserError(
            f'the host key of station "{station.name}" is not known: "{fingerprint}"',
            [
                "compare it with what the board prints: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
                f"--accept-host-key writes it to {path}",
            ],
        )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "w", encoding="ascii") as file:
            kind, public = key.export_public_key("openssh").decode().split()[:2]
            file.write(f"{_pattern(station)} {kind} {public}\n")
    except OSError as error:
        raise UserError(
            f'cannot write "{path}": {error.strerror}', ["name another: known_hosts in stations.toml"]
        ) from error


def _is_known(path: Path, station: Station) -> bool:
    return path.exists() and bool(_known_keys(path, station))


def _known_keys(path: Path, station: Station) -> list[asyncssh.SSHKey]:
    """Of the station, or of the authorities that vouch for it."""
    try:
        known = asyncssh.read_known_hosts(str(path))
        host_keys, authorities, *_ = known.match(
            station.host, _address(station.host), None if station.port == SSH_PORT else station.port
        )
    except (OSError, ValueError) as error:
        raise UserError(f'cannot read "{path}": {error}', ["name another: known_hosts in stations.toml"]) from error
    return [*host_keys, *authorities]


def _address(host: str) -> str:
    """The host itself where it is an address: names are known by their name, whatever they resolve to."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, host)
            return host
    return ""


def _pattern(station: Station) -> str:
    """Of the station in ``known_hosts``, sshd(8)."""
    return station.host if station.port == SSH_PORT else f"[{station.host}]:{station.port}"


def _shown_key(background: Background, station: Station) -> asyncssh.SSHKey:
    """The key that the station shows now."""

    async def ask() -> asyncssh.SSHKey | None:
        return await asyncssh.get_server_host_key(station.host, station.port, config=None)

    with _refusals(station):
        key = background.call(_in_time(ask()))
    if key is None:
        raise UserError(
            f'station "{station.name}" shows no host key', [f"ssh-keyscan -p {station.port} {station.host}"]
        )
    return key


def _agreed(station: Station, fingerprint: str) -> bool:
    """Asks the person at the terminal, if there is one."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    sys.stderr.write(f'First contact with station "{station.name}" ({_pattern(station)}).\nHost key: {fingerprint}\n')
    sys.stderr.write("Is it this board's? yes or no: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() == "yes"


def _log_in(background: Background, station: Station) -> asyncssh.SSHClientConnection:
    async def connect() -> asyncssh.SSHClientConnection:
        return await asyncssh.connect(
            station.host,
            station.port,
            username=station.user,
            client_keys=() if station.key is None else [str(Path(station.key).expanduser())],
            known_hosts=str(_known_hosts(station)),
            preferred_auth="publickey",
            keepalive_interval=_KEEPALIVE_S,
            keepalive_count_max=_KEEPALIVE_MISSED,
            config=None,
        )

    async def log_in() -> asyncssh.SSHClientConnection:
        try:
            return await connect()
        except asyncssh.ConnectionLost as error:
            # A server without a key of the kind that we know may hang up before we have found that out.
            if await _shows_another_key(station):
                raise asyncssh.HostKeyNotVerifiable("another host key") from error
            raise

    try:
        with _refusals(station):
            return background.call(_in_time(log_in()))
    except (asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed) as error:
        raise _another_key(background, station) from error


async def _shows_another_key(station: Station) -> bool:
    """Whether it now shows a key that is not the one we know; a server that shows none has not."""
    ask = asyncssh.get_server_host_key(station.host, station.port, config=None)
    try:
        shown = await asyncio.wait_for(ask, _ASK_AGAIN_S)
    except (asyncio.TimeoutError, asyncssh.Error, OSError):
        return False
    known = {key.public_data for key in _known_keys(_known_hosts(station), station)}
    return shown is not None and shown.public_data not in known


async def _in_time(work: Coroutine[Any, Any, T]) -> T:
    try:
        return await asyncio.wait_for(work, CONNECT_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise TimeoutError from None  # one class from Python 3.11 on, two before


async def _close(connection: asyncssh.SSHClientConnection) -> None:
    connection.close()
    with contextlib.suppress(asyncssh.Error, OSError):
        await connection.wait_closed()


def _another_key(background: Background, station: Station) -> UserError:
    path, shown = _known_hosts(station), _shown_key(background, station).get_fingerprint()
    return UserError(
        f'station "{station.name}" shows another host key than the one in {path}: "{shown}"',
        [
            "if nobody has written the board's card anew, somebody else may be answering: do not go on",
            f'if it was: ssh-keygen -f {path} -R "{_pattern(station)}", then again with --accept-host-key',
        ],
    )


@contextlib.contextmanager
def _refusals(station: Station) -> Iterator[None]:
    """What goes wrong on the way in, in our words; a wrong host key is left to the caller."""
    where = f"{station.host}:{station.port}"
    try:
        yield
    except (asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed):
        raise
    except asyncssh.PermissionDenied as error:
        given = "the agent's keys" if station.key is None else f'the key "{station.key}"'
        raise UserError(
            f'station "{station.name}" lets "{station.user}" not in with {given}',
            [f"ssh-copy-id -p {station.port} {station.user}@{station.host}", 'key = "PATH" in stations.toml'],
        ) from error
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        raise UserError(
            f'cannot use the key "{station.key}": {error}', ["ssh-add it, and leave key out of stations.toml"]
        ) from error
    except socket.gaierror as error:
        raise UserError(
            f'there is no machine called "{station.host}"',
            ["its address: splitboard boards stations, or the router's page"],
        ) from error
    except ConnectionRefusedError as error:
        raise UserError(
            f'station "{station.name}" is there and has no ssh at "{where}"',
            ["on the board: sudo systemctl enable --now ssh", "another port: user@host:port"],
        ) from error
    except (TimeoutError, asyncssh.DisconnectError, OSError) as error:
        _raise_other(station, where, error)


def _raise_other(station: Station, where: str, error: Exception) -> None:
    if isinstance(error, FileNotFoundError) and station.key is not None:
        raise UserError(f'there is no key "{station.key}"', ["ssh-keygen -t ed25519, then ssh-copy-id"]) from error
    if isinstance(error, TimeoutError) or getattr(error, "errno", None) in _NO_ROUTE:
        raise UserError(
            f'station "{station.name}" does not answer at "{where}"',
            ["is it on, and in this network? ping it", "right after its power came on: wait a minute"],
        ) from error
    raise UserError(
        f'station "{station.name}" broke off the login at "{where}": {error}',
        ["look why, on the board: journalctl -u ssh"],
    ) from error
