"""What every shell does, whatever is behind it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from splitboard.contract.errors import UserError

RUN_TIMEOUT_S = 60.0
_SHOWN_CHARACTERS = 200
"""Of a command, in a message."""


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

        Its standard input is empty and does not end before the connection does: a program that must not outlive whoever
        follows it can read that.

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
            progress: called with the bytes done and the bytes in all, maybe from another thread.

        Raises:
            ConnectionLost: the connection broke; the next call goes on from there.
            UserError: no space, no permission.
        """

    def get(self, source: PurePosixPath, target: Path) -> None:
        """Copies a file from the board; it has its name only when it is whole and its checksum is the board's.

        What a broken transfer left here is taken up.

        Raises:
            ConnectionLost: the connection broke.
            UserError: there is no such file.
        """

    def reach(self, host: str, port: int) -> AbstractContextManager[int]:
        """A port on the board's own loopback that leads to ``host:port`` as this machine reaches it.

        Yields:
            The port on the board.

        Raises:
            UserError: the board does not allow it.
        """


# What every shell says in the same words.


def connection_lost(name: str) -> ConnectionLost:
    """The connection to a station broke."""
    tries = ["run the same command again: what has arrived stays there", "look whether the board is restarting"]
    return ConnectionLost(f'the connection to station "{name}" is lost', tries)


def out_of_time(name: str, argv: Sequence[str], timeout_s: float) -> UserError:
    """A program did not end in time."""
    return UserError(
        f'station "{name}" took longer than {timeout_s:g} s for "{_short(argv)}"',
        ["look what else runs on the board: top"],
    )


def _short(argv: Sequence[str]) -> str:
    text = shlex.join(argv)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def no_space(name: str, path: str) -> UserError:
    """The disk is full."""
    return UserError(
        f'station "{name}" has no space for "{path}"',
        ["look what takes it: df -h, on the board", "give the station another root in stations.toml"],
    )


def no_permission(name: str, path: str) -> UserError:
    """The user may not."""
    return UserError(
        f'station "{name}" does not let its user read or write "{path}"',
        ["give the station a root in stations.toml that its user owns; nothing is done as root"],
    )


def not_there(name: str, path: str) -> UserError:
    """No such file."""
    return UserError(f'station "{name}" has no file "{path}"')
