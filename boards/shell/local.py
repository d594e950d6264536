"""A shell on this machine: the same programs and files, no network."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from boards.shell.shell import RUN_TIMEOUT_S, Completed, no_permission, no_space, not_there, out_of_time
from splitboard.contract.bundle import file_sha256
from splitboard.contract.errors import UserError

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126
"""Exit codes of a shell (POSIX, 2.8.2) for a program that is not there, or is none."""


class LocalShell:
    """This machine as a station.

    Args:
        name: for messages.
        home: what relative paths start from, and where programs run; the user's home by default, as ssh has it.
    """

    def __init__(self, name: str = "local", home: Path | None = None) -> None:
        self.name = name
        self._home = Path.home() if home is None else home

    def run(self, argv: Sequence[str], *, timeout_s: float = RUN_TIMEOUT_S, stdin: bytes = b"") -> Completed:
        """Runs a program and waits for its end; see `boards.shell.shell.Shell.run`."""
        process = self._start(argv, subprocess.PIPE)
        if isinstance(process, Completed):
            return process
        with process:
            try:
                stdout, stderr = process.communicate(stdin, timeout_s)
            except BaseException as error:
                _kill(process)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise out_of_time(self.name, argv, timeout_s) from error
                raise
        return Completed(tuple(argv), process.returncode, _text(stdout), _text(stderr))

    def follow(self, argv: Sequence[str], on_line: Callable[[str], None]) -> Completed:
        """Runs a program and hands on what it complains; see `boards.shell.shell.Shell.follow`."""
        with tempfile.TemporaryFile() as stdout:
            process = self._start(argv, stdout)
            if isinstance(process, Completed):
                return process
            complained: list[str] = []
            with process:
                try:
                    assert process.stderr is not None
                    for line in process.stderr:
                        complained.append(_text(line))
                        on_line(complained[-1].rstrip("\n"))
                except BaseException:
                    _kill(process)
                    raise
            stdout.seek(0)
            return Completed(tuple(argv), process.returncode, _text(stdout.read()), "".join(complained))

    def put(self, source: Path, target: PurePosixPath, progress: Callable[[int, int], None] | None = None) -> None:
        """Copies a file; see `boards.shell.shell.Shell.put`."""
        place = self._home / target
        with _refusals(self.name, str(target)):
            place.parent.mkdir(parents=True, exist_ok=True)
            _copy(source, place)
        if progress is not None:
            progress(place.stat().st_size, place.stat().st_size)

    def get(self, source: PurePosixPath, target: Path) -> None:
        """Copies a file; see `boards.shell.shell.Shell.get`."""
        with _refusals(self.name, str(source)):
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(self._home / source, target)

    @contextlib.contextmanager
    def reach(self, host: str, port: int) -> Iterator[int]:
        """The same port; see `boards.shell.shell.Shell.reach`.

        Raises:
            UserError: the server is on another machine: it is reached there, not on this one's loopback.
        """
        if host not in ("127.0.0.1", "localhost", "::1"):
            raise UserError(f'"{host}:{port}" is not on this machine', ["give the board the server's own address"])
        yield port

    def _start(self, argv: Sequence[str], stdout: int | IO[bytes]) -> subprocess.Popen[bytes] | Completed:
        """The process in a group of its own; what a shell answers where the program cannot be run."""
        pipe = subprocess.PIPE
        try:
            return subprocess.Popen(
                list(argv), stdin=pipe, stdout=stdout, stderr=pipe, cwd=self._home, start_new_session=True
            )
        except FileNotFoundError:
            return Completed(tuple(argv), _NOT_FOUND, "", f"{argv[0]}: not found\n")
        except PermissionError:
            return Completed(tuple(argv), _NOT_EXECUTABLE, "", f"{argv[0]}: Permission denied\n")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _copy(source: Path, target: Path) -> None:
    """Copies beside the place and moves it there when the checksum is the source's."""
    beside = target.with_name(target.name + ".part")
    shutil.copyfile(source, beside)
    if file_sha256(beside) != file_sha256(source):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    beside.replace(target)


@contextlib.contextmanager
def _refusals(name: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_space(name, path) from error
        if isinstance(error, PermissionError):
            raise no_permission(name, path) from error
        if isinstance(error, FileNotFoundError):
            raise not_there(name, path) from error
        raise UserError(f'station "{name}" cannot copy "{path}": {error.strerror}') from error


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
