"""The shell to an emulated board: ``emulated:rpi5``."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath

from boards.emulated.userland import HOME, USER, USER_ID, Say, Userland, prepare
from boards.shell.local import LocalShell
from boards.shell.shell import RUN_TIMEOUT_S, Completed, no_permission
from splitboard.contract.errors import UserError

PREFIX = "emulated:"
DEFAULT_RELEASE = "trixie"
_INSIDE = Path(__file__).with_name("enter.sh")
_TMP = "/tmp"


def state_folder(name: str) -> Path:
    """Where the files of a board that is called ``name`` are kept from one command to the next."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "splitboard" / "emulated" / name


def emulated_shell(address: str, say: Say | None = None) -> EmulatedShell:
    """The shell to ``emulated:KIND`` or ``emulated:KIND:RELEASE``; fetches what is not there yet.

    The board is bare, as a new one is: Debian with its Python, and no interpreter for networks.

    Args:
        address: the two names behind ``emulated:``.
        say: told what is being fetched.

    Raises:
        UserError: the address names nothing that can be emulated, or this machine cannot.
    """
    kind, _, release = address.removeprefix(PREFIX).partition(":")
    userland = prepare(kind, release or DEFAULT_RELEASE, say=say)
    return EmulatedShell(address, userland, state_folder(f"{kind}-{userland.release}"))


class EmulatedShell:
    """A board that is a folder of this machine.

    Its programs are Arm's, run by QEMU as a user without rights. They see Debian's file system, which they cannot
    change, their home and ``/tmp``; ``/proc`` and the network are this machine's. There is no ``/sys``: no clock,
    temperature or meter to read, and no time that means anything. Who records what such a board did has to say so
    (``splitboard-edge.pyz bench --emulated``).

    Attributes:
        name: of the station.
    """

    def __init__(self, name: str, userland: Userland, folder: Path) -> None:
        """Tries whether programs run.

        Args:
            name: of the station.
            userland: what it runs.
            folder: for its files; made, and kept. The file ``enter`` in it runs a program on the board, for people.

        Raises:
            UserError: they do not.
        """
        self.name = name
        folder = folder.absolute()
        self._places = {HOME: folder / "home", _TMP: folder / "tmp"}
        for place in self._places.values():
            place.mkdir(parents=True, exist_ok=True)
        self._enter = folder / "enter"
        _write_script(self._enter, _entering(userland, *self._places.values()))
        self._here = LocalShell(name, self._places[HOME])
        tried = self.run(["true"])
        if tried.returncode != 0:
            newer = "Linux 6.7 or newer, where a user namespace has a binfmt_misc of its own"
            raise UserError(
                f'"{name}" cannot be emulated here: "{tried.stderr.strip()}"',
                [
                    f"{newer}; this is {platform.release()}",
                    "allow user namespaces; some systems allow them to root only",
                ],
            )

    def run(self, argv: Sequence[str], *, timeout_s: float = RUN_TIMEOUT_S, stdin: bytes = b"") -> Completed:
        """Runs a program and waits for its end; see `boards.shell.shell.Shell.run`."""
        done = self._here.run([str(self._enter), *argv], timeout_s=timeout_s, stdin=stdin)
        return dataclasses.replace(done, argv=tuple(argv))

    def follow(self, argv: Sequence[str], on_line: Callable[[str], None]) -> Completed:
        """Runs a program and hands on what it complains; see `boards.shell.shell.Shell.follow`."""
        done = self._here.follow([str(self._enter), *argv], on_line)
        return dataclasses.replace(done, argv=tuple(argv))

    def put(self, source: Path, target: PurePosixPath, progress: Callable[[int, int], None] | None = None) -> None:
        """Copies a file to the board; see `boards.shell.shell.Shell.put`. This never breaks off half-way."""
        self._here.put(source, self._on_disk(target), progress)

    def get(self, source: PurePosixPath, target: Path) -> None:
        """Copies a file from the board; see `boards.shell.shell.Shell.get`."""
        self._here.get(self._on_disk(source), target)

    def reach(self, host: str, port: int) -> AbstractContextManager[int]:
        """The same port, since the network is this machine's; see `boards.shell.shell.Shell.reach`."""
        return self._here.reach(host, port)

    def _on_disk(self, path: PurePosixPath) -> PurePosixPath:
        """Where a file of the board is on this machine; links are followed on the board."""
        done = self.run(["realpath", "-m", "--", str(path)])
        real = PurePosixPath(done.stdout.rstrip("\n"))
        for place, here in self._places.items():
            if done.returncode == 0 and real.is_relative_to(place):
                return PurePosixPath(here / real.relative_to(place))
        raise no_permission(self.name, str(path))


def _entering(userland: Userland, home: Path, temporary: Path) -> list[str]:
    """The command that a program's own argument list is appended to."""
    path = "PATH=/usr/local/bin:/usr/bin:/usr/sbin"
    cpu = f"QEMU_CPU={userland.cpu}"
    clean = ["env", "-i", path, f"HOME={HOME}", f"USER={USER}", "LANG=C.UTF-8", cpu]
    site = "" if userland.site is None else str(userland.site)
    folders = [str(userland.root), str(home), str(temporary), str(userland.qemu), site, userland.packages]
    namespaces = ["unshare", "--user", "--map-root-user", "--mount"]
    return [*clean, *namespaces, "sh", str(_INSIDE), *folders, str(USER_ID)]


def _write_script(path: Path, command: Sequence[str]) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n', encoding="utf-8")
    beside.chmod(0o755)
    beside.replace(path)
