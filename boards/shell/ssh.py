"""A shell through ssh: asyncssh behind a face that waits."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from queue import SimpleQueue
from typing import cast

import asyncssh

from boards.shell.background import Background
from boards.shell.shell import (
    RUN_TIMEOUT_S,
    Completed,
    connection_lost,
    no_permission,
    no_space,
    not_there,
    out_of_time,
)
from splitboard.contract.bundle import file_sha256
from splitboard.contract.errors import UserError

_PIECE_BYTES = 1 << 20
"""Of a file, between two calls of the progress function; asyncssh divides it further and keeps the pieces flowing."""

_SHA256_PYTHON = """import hashlib, sys
digest = hashlib.sha256()
with open(sys.argv[1], "rb") as file:
    for piece in iter(lambda: file.read(1 << 20), b""):
        digest.update(piece)
print(digest.hexdigest())
"""
_CLOSING = "SSH connection closed"
"""asyncssh's words, while a connection that broke is on its way to being closed."""

_GONE = (
    asyncssh.DisconnectError,
    asyncssh.SFTPConnectionLost,
    asyncssh.SFTPNoConnection,
    ConnectionError,
)


class SshShell:
    """One open connection to a board. Threads may share it; each command has a channel of its own.

    Args:
        name: of the station, for messages.
        background: where the connection lives.
        connection: logged in.
    """

    def __init__(self, name: str, background: Background, connection: asyncssh.SSHClientConnection) -> None:
        self.name = name
        self._background = background
        self._connection = connection

    def run(self, argv: Sequence[str], *, timeout_s: float = RUN_TIMEOUT_S, stdin: bytes = b"") -> Completed:
        """Runs a program and waits for its end; see `boards.shell.shell.Shell.run`."""
        return self._background.call(self._run(argv, timeout_s, stdin))

    def follow(self, argv: Sequence[str], on_line: Callable[[str], None]) -> Completed:
        """Runs a program and hands on what it complains; see `boards.shell.shell.Shell.follow`."""
        lines: SimpleQueue[str | None] = SimpleQueue()  # so that on_line runs in the caller's thread
        future = self._background.start(self._follow(argv, lines.put))
        future.add_done_callback(lambda _: lines.put(None))
        try:
            while (line := lines.get()) is not None:
                on_line(line)
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def put(self, source: Path, target: PurePosixPath, progress: Callable[[int, int], None] | None = None) -> None:
        """Copies a file to the board; see `boards.shell.shell.Shell.put`."""
        self._background.call(self._put(source, target, progress or (lambda *_: None)))

    def get(self, source: PurePosixPath, target: Path) -> None:
        """Copies a file from the board; see `boards.shell.shell.Shell.get`."""
        self._background.call(self._get(source, target))

    @contextlib.contextmanager
    def reach(self, host: str, port: int) -> Iterator[int]:
        """A port on the board that leads to ``host:port`` from here; see `boards.shell.shell.Shell.reach`."""
        listener = self._background.call(self._forward(host, port))
        try:
            yield listener.get_port()
        finally:
            self._background.call(self._stop(listener))

    async def _run(self, argv: Sequence[str], timeout_s: float, stdin: bytes) -> Completed:
        async with self._process(argv) as process:
            with contextlib.suppress(BrokenPipeError):  # it may end without reading what it is given
                process.stdin.write(stdin)
                process.stdin.write_eof()
            output = asyncio.gather(process.stdout.read(), process.stderr.read(), process.wait_closed())
            try:
                stdout, stderr, _ = await asyncio.wait_for(output, timeout_s)
            except asyncio.TimeoutError:
                raise out_of_time(self.name, argv, timeout_s) from None
        return self._completed(argv, process, stdout, stderr)

    async def _follow(self, argv: Sequence[str], on_line: Callable[[str], None]) -> Completed:
        complained: list[bytes] = []

        async def hand_on() -> None:
            while line := await process.stderr.readline():
                complained.append(line)
                on_line(_text(line).rstrip("\n"))

        async with self._process(argv) as process:
            stdout, _, _ = await asyncio.gather(process.stdout.read(), hand_on(), process.wait_closed())
        return self._completed(argv, process, stdout, b"".join(complained))

    @contextlib.asynccontextmanager
    async def _process(self, argv: Sequence[str]) -> AsyncIterator[asyncssh.SSHClientProcess[bytes]]:
        """A program that was started. One that still runs at the end of the block is told to end, and left alone."""
        with self._refusals(argv[0]):
            process = await self._connection.create_process(shlex.join(argv), encoding=None)
            try:
                yield process
            finally:
                with contextlib.suppress(OSError):  # it has ended
                    process.kill()
                process.close()

    def _completed(
        self, argv: Sequence[str], process: asyncssh.SSHClientProcess[bytes], stdout: bytes, stderr: bytes
    ) -> Completed:
        """What the program left; without an exit code it was the connection that ended."""
        if process.returncode is None:
            raise connection_lost(self.name)
        return Completed(tuple(argv), process.returncode, _text(stdout), _text(stderr))

    async def _put(self, source: Path, target: PurePosixPath, progress: Callable[[int, int], None]) -> None:
        path, part, sha256 = str(target), f"{target}.part", await asyncio.to_thread(file_sha256, source)
        with self._refusals(path):
            async with self._connection.start_sftp_client() as sftp:
                await sftp.makedirs(str(target.parent), exist_ok=True)
                begun_bytes = (await sftp.getsize(part) or 0) if await sftp.exists(part) else 0
                await self._send(sftp, source, part, begun_bytes, progress)
                if begun_bytes and await self._sha256(part) != sha256:  # the beginning was of another file
                    await sftp.remove(part)
                    await self._send(sftp, source, part, 0, progress)
                if await self._sha256(part) != sha256:
                    await sftp.remove(part)
                    raise self._changed_on_the_way(path)
                await sftp.posix_rename(part, path)

    async def _send(
        self,
        sftp: asyncssh.SFTPClient,
        source: Path,
        part: str,
        begun_bytes: int,
        progress: Callable[[int, int], None],
    ) -> None:
        """Writes a file from ``begun_bytes`` on, and has the board bring it to its disk."""
        total_bytes = source.stat().st_size
        begun_bytes = begun_bytes if begun_bytes <= total_bytes else 0
        flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | (0 if begun_bytes else asyncssh.FXF_TRUNC)
        with open(source, "rb") as file:
            file.seek(begun_bytes)
            async with sftp.open(part, flags, encoding=None) as there:
                done_bytes = begun_bytes
                progress(done_bytes, total_bytes)
                while piece := file.read(_PIECE_BYTES):
                    await self._write(sftp, there, part, piece, done_bytes)
                    done_bytes += len(piece)
                    progress(done_bytes, total_bytes)
                with contextlib.suppress(asyncssh.SFTPOpUnsupported):
                    await there.fsync()

    async def _write(
        self,
        sftp: asyncssh.SFTPClient,
        there: asyncssh.SFTPClientFile,
        part: str,
        piece: bytes,
        offset_bytes: int,
    ) -> None:
        try:
            await there.write(piece, offset_bytes)
        except asyncssh.SFTPFailure as error:  # version 3 of the protocol, which OpenSSH has, knows no better word
            disk = await sftp.statvfs(str(PurePosixPath(part).parent))
            if (disk.bavail or 0) * (disk.frsize or 0) < len(piece):
                raise no_space(self.name, part.removesuffix(".part")) from error
            raise

    async def _get(self, source: PurePosixPath, target: Path) -> None:
        path, part = str(source), target.with_name(target.name + ".part")
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._refusals(path):
            async with self._connection.start_sftp_client() as sftp:
                begun_bytes = part.stat().st_size if part.is_file() else 0
                await _receive(sftp, path, part, begun_bytes)
                sha256 = await self._sha256(path)
                if begun_bytes and file_sha256(part) != sha256:  # the beginning was of another file
                    await _receive(sftp, path, part, 0)
        if file_sha256(part) != sha256:
            part.unlink()
            raise self._changed_on_the_way(path)
        part.replace(target)

    async def _sha256(self, path: str) -> str:
        """Of a file, as the board reads it."""
        done = await self._run(["sha256sum", "--", path], _LONGEST_CHECKSUM_S, b"")
        if done.returncode != 0:
            done = await self._run(["python3", "-c", _SHA256_PYTHON, path], _LONGEST_CHECKSUM_S, b"")
        if done.returncode != 0:
            raise UserError(f'station "{self.name}" cannot tell the checksum of "{path}"', [done.stderr.strip()[-200:]])
        return done.stdout.split()[0].lstrip("\\")  # sha256sum marks names that it had to escape

    def _changed_on_the_way(self, path: str) -> UserError:
        return UserError(
            f'the checksum of "{path}" on station "{self.name}" is not that of what was sent',
            ["run the same command again", "if it stays so, the board's card is failing: sudo dmesg | grep mmc"],
        )

    async def _forward(self, host: str, port: int) -> asyncssh.SSHListener:
        with self._refusals(f"{host}:{port}"):
            try:
                return await self._connection.forward_remote_port("127.0.0.1", 0, host, port)
            except asyncssh.ChannelListenError as error:
                raise UserError(
                    f'station "{self.name}" does not let ssh forward a port to "{host}:{port}"',
                    [
                        "on the board: AllowTcpForwarding yes in /etc/ssh/sshd_config",
                        "give it an address of the server",
                    ],
                ) from error

    async def _stop(self, listener: asyncssh.SSHListener) -> None:
        listener.close()
        with contextlib.suppress(*_GONE):
            await listener.wait_closed()

    @contextlib.contextmanager
    def _refusals(self, path: str) -> Iterator[None]:
        """What asyncssh raises, in our words."""
        try:
            yield
        except _GONE as error:
            raise connection_lost(self.name) from error
        except asyncssh.ChannelOpenError as error:
            if self._connection.is_closed() or error.reason == _CLOSING:
                raise connection_lost(self.name) from error
            raise UserError(
                f'station "{self.name}" opens no further channel for "{path}": {error.reason}',
                ["on the board: a larger MaxSessions in /etc/ssh/sshd_config"],
            ) from error
        except (asyncssh.SFTPPermissionDenied, asyncssh.SFTPWriteProtect) as error:
            raise no_permission(self.name, path) from error
        except (asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded) as error:
            raise no_space(self.name, path) from error
        except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath) as error:
            raise not_there(self.name, path) from error
        except asyncssh.SFTPError as error:
            raise UserError(f'station "{self.name}" cannot copy "{path}": {error.reason}') from error


_LONGEST_CHECKSUM_S = 600.0


async def _receive(sftp: asyncssh.SFTPClient, path: str, part: Path, begun_bytes: int) -> None:
    """Reads a file from ``begun_bytes`` on."""
    with open(part, "r+b" if begun_bytes else "wb") as here:
        here.seek(begun_bytes)
        async with sftp.open(path, asyncssh.FXF_READ, encoding=None) as file:
            while piece := await file.read(_PIECE_BYTES, here.tell()):
                here.write(cast(bytes, piece))
        here.truncate()


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
