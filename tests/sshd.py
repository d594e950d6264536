"""Stations for tests: a real sshd on loopback, and asyncssh's own server in this process."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from boards.shell.background import Background
from boards.stations import Station

SSHD = Path("/usr/sbin/sshd")
_START_S = 10.0


@dataclass(frozen=True)
class Desk:
    """A board in the form of an ssh server on this machine.

    Attributes:
        folder: holds the keys, and the station's root ``board``.
        station: with a known host key and a key that is let in.
    """

    folder: Path
    station: Station

    @property
    def root(self) -> Path:
        return Path(self.station.root)

    def behind(self, port: int) -> Station:
        """The same board through a proxy on another port."""
        known = self.folder / f"known_hosts_{port}"
        known.write_text((self.folder / "known_hosts").read_text().replace(f":{self.station.port} ", f":{port} "))
        return replace(self.station, port=port, known_hosts=str(known))


def write_keys(folder: Path) -> None:
    """The server's key and the user's."""
    for name in ("host_key", "user_key"):
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(str(folder / name))
        (folder / name).chmod(0o600)
        key.write_public_key(str(folder / f"{name}.pub"))


def desk(folder: Path, port: int) -> Desk:
    """The station, after `write_keys`."""
    kind, public = (folder / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {public}\n")
    station = Station(
        name="desk",
        user=getpass.getuser(),
        host="127.0.0.1",
        port=port,
        key=str(folder / "user_key"),
        root=str(folder / "board"),
        known_hosts=str(folder / "known_hosts"),
    )
    return Desk(folder, station)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def real_sshd(folder: Path, *more: str) -> Iterator[Desk]:
    """OpenSSH's server with a configuration of its own; ``more`` are further lines of it."""
    if not SSHD.exists():
        pytest.skip("no /usr/sbin/sshd: apt-get install openssh-server")
    write_keys(folder)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    port = free_port()
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder / 'host_key'}",
        f"AuthorizedKeysFile {folder / 'user_key.pub'}",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "PermitRootLogin prohibit-password",
        "PidFile none",
        "Subsystem sftp internal-sftp",
        *more,
    ]
    config = folder / "sshd_config"
    config.write_text("\n".join(lines) + "\n")
    with open(folder / "sshd.log", "wb") as log:
        server = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(config)], stderr=log, stdin=subprocess.DEVNULL)
    try:
        _wait_for(port, server, folder / "sshd.log")
        yield desk(folder, port)
    finally:
        server.terminate()
        server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"sshd does not start: {log.read_text()}")


@contextlib.contextmanager
def asyncssh_server(folder: Path) -> Iterator[Desk]:
    """The server that asyncssh has: programs run in real processes, files are this machine's."""
    write_keys(folder)
    logins: list[asyncssh.SSHServerConnection] = []
    with Background() as background:
        server = background.call(_listen(folder, logins))
        yield desk(folder, server.get_port())
        background.call(_close(server, logins))


async def _listen(folder: Path, logins: list[asyncssh.SSHServerConnection]) -> asyncssh.SSHAcceptor:
    return await asyncssh.listen(
        "127.0.0.1",
        0,
        server_factory=lambda: _Server(logins),
        server_host_keys=[str(folder / "host_key")],
        authorized_client_keys=str(folder / "user_key.pub"),
        process_factory=_process,
        encoding=None,
        sftp_factory=True,
        keepalive_interval=0,
    )


async def _close(server: asyncssh.SSHAcceptor, logins: list[asyncssh.SSHServerConnection]) -> None:
    server.close()
    for login in logins:  # some whose other end went without a word
        login.abort()
        await login.wait_closed()
    await server.wait_closed()


class _Server(asyncssh.SSHServer):
    def __init__(self, logins: list[asyncssh.SSHServerConnection]) -> None:
        self._logins = logins

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._logins.append(conn)

    def server_requested(self, listen_host: str, listen_port: int) -> bool:  # noqa: ARG002 - any port
        return True


async def _process(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Runs a command as sshd does, through a shell, from the user's home."""
    pipe = asyncio.subprocess.PIPE
    command = process.command or ""
    child = await asyncio.create_subprocess_shell(
        command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=Path.home(), start_new_session=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    given = asyncio.create_task(_pump(process.stdin, child.stdin))
    try:
        with contextlib.suppress(asyncssh.DisconnectError, ConnectionError):
            await asyncio.gather(_pump(child.stdout, process.stdout), _pump(child.stderr, process.stderr))
        given.cancel()
        code = await child.wait()
    finally:  # the loop ends with the test, and nothing of it may be left
        given.cancel()
        child.stdin.close()
        if child.returncode is None:
            os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
    if code >= 0:
        process.exit(code)
    else:
        process.exit_with_signal(signal.Signals(-code).name.removeprefix("SIG"))


async def _pump(source: Any, target: Any) -> None:
    with contextlib.suppress(ConnectionError, asyncssh.DisconnectError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    with contextlib.suppress(ConnectionError):
        target.write_eof()
