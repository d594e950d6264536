"""A board is used by one run at a time: a lease on the board itself, with an owner and an end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boards.shell.program import run_program
from boards.shell.shell import ConnectionLost, Shell
from splitboard.contract.errors import UserError

_ON_BOARD = Path(__file__).with_name("lease_on_board.py")
MINUTES = 15.0
"""Of a deploy's or a bench's lease, which is renewed every third of that: a measurement should not often meet it."""

_TO_BREAK_S = 60.0
"""Of the lease that stands in for the one that is taken away, for the moment between the two."""

_RENEWALS = 3
"""In the time of one lease, so that one that fails does not end it."""


@dataclass(frozen=True)
class Holder:
    """Who has a board.

    Attributes:
        owner: as the run calls itself.
        host: the machine that it runs on.
        pid: its process there.
        place: what the process number is of: one start of one machine's kernel, and a namespace of it; empty where
            the machine does not tell.
    """

    owner: str
    host: str
    pid: int
    place: str


def _is_dead(holder: Mapping[str, Any]) -> bool:
    """Whether it was a process of this machine that has ended without giving the board back."""
    if not holder.get("place") or holder["place"] != _place():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _place() -> str:
    with contextlib.suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def break_lease(
    shell: Shell, root: str, agreed: Callable[[Holder, float], bool], *, python: str = "python3"
) -> Holder | None:
    """Takes a board away from whoever has it, and leaves it free. A run that goes on there fails at its next step.

    Args:
        shell: of the board.
        root: the station's folder on the board.
        agreed: asked, with the holder and the seconds that are left, whether that shall be done.
        python: interpreter on the board.

    Returns:
        Who had it; ``None`` where nobody had, or where it was not agreed.
    """
    request = {"root": root, "token": secrets.token_hex(16), "holder": {}, "seconds": _TO_BREAK_S}
    other = run_program(shell, python, _ON_BOARD, "take", request)
    holder = None
    if other is not None:
        holder = Holder(**other["holder"])
        if not agreed(holder, other["left_s"]):
            return None
        run_program(shell, python, _ON_BOARD, "take", {**request, "gone": other["holder"]})
    run_program(shell, python, _ON_BOARD, "release", request)
    return holder


class Lease:
    """A board that is held. It is renewed by a thread of its own.

    Attributes:
        holder: who has it.
    """

    def __init__(self, shell: Shell, python: str, root: str, holder: Holder, minutes: float) -> None:
        self.holder = holder
        self._shell, self._python = shell, python
        self._seconds = 60.0 * minutes
        self._request = {
            "root": root,
            "token": secrets.token_hex(16),
            "holder": dataclasses.asdict(holder),
            "seconds": self._seconds,
        }
        self._lost: Exception | None = None

    def check(self) -> None:
        """Whether the board is still ours.

        Raises:
            UserError: it is not: the connection broke, or the lease ran out in a pause and somebody else took it.
        """
        if self._lost is not None:
            raise self._lost

    def take(self) -> None:
        """Takes the board, or takes it for longer.

        Raises:
            UserError: somebody else has it.
        """
        other = run_program(self._shell, self._python, _ON_BOARD, "take", self._request)
        if other is not None and _is_dead(other["holder"]):
            gone = {**self._request, "gone": other["holder"]}
            other = run_program(self._shell, self._python, _ON_BOARD, "take", gone)
        if other is not None:
            who = other["holder"]
            raise UserError(
                f'station "{self._shell.name}" is in use by "{who["owner"]}" (process {who["pid"]} on {who["host"]}) '
                f"until {other['until']}",
                [
                    f"wait: it is free in {max(1, round(other['left_s']))} s at the latest, unless it is renewed",
                    f"if that run is gone: splitboard boards free {self._shell.name}",
                ],
            )

    def give_back(self) -> None:
        """Lets others have it. A board that is out of reach gets free by itself, at the lease's end."""
        with contextlib.suppress(ConnectionLost):
            run_program(self._shell, self._python, _ON_BOARD, "release", self._request)

    def renew_until(self, ended: threading.Event) -> None:
        """Renews it again and again until it has ended or is lost."""
        while not ended.wait(self._seconds / _RENEWALS):
            try:
                self.take()
            except (UserError, RuntimeError) as error:
                self._lost = error
                return


@contextlib.contextmanager
def lease(shell: Shell, root: str, owner: str, minutes: float, *, python: str = "python3") -> Iterator[Lease]:
    """Holds a board as long as the block lasts.

    It is renewed three times in its length, by a short program on the board: a run that times things asks for longer
    than it takes. When the connection or this process dies it is not, and the board gets free at the lease's end; for
    others on this machine at once, who see that the process has ended.

    Args:
        shell: of the board.
        root: the station's folder on the board.
        owner: who shall be named to others.
        minutes: length of the lease.
        python: interpreter on the board.

    Yields:
        The lease; its ``check`` says whether it still holds.

    Raises:
        UserError: somebody else has it; the message says who, and until when.
    """
    held = Lease(shell, python, root, Holder(owner, socket.gethostname(), os.getpid(), _place()), minutes)
    held.take()
    ended = threading.Event()
    renewing = threading.Thread(target=held.renew_until, args=(ended,), name="lease", daemon=True)
    renewing.start()
    try:
        yield held
    finally:
        ended.set()
        renewing.join()
        held.give_back()
