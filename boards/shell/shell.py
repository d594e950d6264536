"""What every shell does, whatever is behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from splitboard.contract.errors import UserError

RUN_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Completed:
    """A program that has ended.

    Attributes:
        argv: what was run.
        returncode: its exit code; negative, the signal that ended it.
        stdout: what it printed.
        stderr: what it complained.
    """

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


class ConnectionLost(UserError):
    """The board was there and is no longer: rebooting, unplugged, or the network is gone."""


class Shell(Protocol):
    """A board's command line and files.

    Programs are given as argument lists and never pass through a shell's quoting. Nothing runs as root unless the
    argument list says so.

    Attributes:
        name: of the station, for messages.
    """

    name: str

    def run(self, argv: Sequence[str], *, timeout_s: float = RUN_TIMEOUT_S, stdin: bytes = b"") -> Completed:
        """Runs a program and waits for its end.

        Raises:
            ConnectionLost: the connection broke.
            UserError: it did not end within ``timeout_s``; it has been killed where it could be reached.
        """

    def follow(self, argv: Sequence[str], on_line: Callable[[str], None]) -> Completed:
        """Runs a program as long as it takes and hands on each line that it complains (stderr) at once.

        Raises:
            ConnectionLost: the connection broke.
        """

    def put(self, source: Path, target: PurePosixPath, progress: Callable[[int, int], None] | None = None) -> None:
        """Copies a file to the board.

        What a broken transfer left there is taken up, the checksum is compared on the board, and the file has its name
        only when it is whole.

        Args:
            source: here.
            target: there; its folder is made.
            progress: called with the bytes done and the bytes in all.

        Raises:
            ConnectionLost: the connection broke; the next call goes on from there.
            UserError: no space, no permission.
        """

    def get(self, source: PurePosixPath, target: Path) -> None:
        """Copies a file from the board; it has its name only when it is whole and its checksum is the board's.

        Raises:
            ConnectionLost: the connection broke.
            UserError: there is no such file.
        """

    def reach(self, host: str, port: int) -> AbstractContextManager[int]:
        """A port on the board's own loopback that leads to ``host:port`` as this machine reaches it.

        Yields:
            The port on the board.
        """
