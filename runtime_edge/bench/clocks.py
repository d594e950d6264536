"""Holds the clocks of a board still while it is measured, and puts them back whatever becomes of the measurement."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import Callable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from splitboard.contract.errors import Inconclusive, UserError

_POLICIES = "sys/devices/system/cpu/cpufreq"
_MODES_FILE = "etc/nvpmodel.conf"
_MODE = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")
_TIMEOUT_S = 30.0
_PAUSE_S = 2.0
_WRITE = 'printf %s "$1" > "$2"'

# It reads its standard input, which ends with whoever holds the other end, in whatever way that ends; then it does what
# it was told to. In a session of its own, a signal to ours does not reach it.
_GUARD = 'cat > /dev/null; while [ $# -gt 0 ]; do eval "$1"; shift; done'

SUDO = ("sudo", "-n")
"""Asks for no password: a board that needs one refuses at once."""


class Change(NamedTuple):
    """Something to set, and to put back.

    Attributes:
        what: for people.
        apply: command that sets it.
        restore: command that sets what it was before.
    """

    what: str
    apply: Tuple[str, ...]
    restore: Tuple[str, ...]


def governor_changes(wanted: str, root: Path = Path("/")) -> List[Change]:
    """What to change for every core to run under a governor; nothing where it does.

    Args:
        wanted: name, e.g. ``performance``.
        root: of the file system that ``/sys`` is in.

    Raises:
        UserError: there is no such governor here.
    """
    changes = []
    policies = sorted((root / _POLICIES).glob("policy*"))
    if not policies:
        raise UserError(f'there is no governor here to set to "{wanted}"', ["measure without --governor"])
    for policy in policies:
        known = (policy / "scaling_available_governors").read_text(encoding="ascii").split()
        if wanted not in known:
            raise UserError(f'"{policy.name}" has no governor "{wanted}"', [f"it has: {', '.join(known)}"])
        file = policy / "scaling_governor"
        now = file.read_text(encoding="ascii").strip()
        if now != wanted:
            put = ("sh", "-c", _WRITE, "sh")
            what = f"governor of {policy.name} from {now} to {wanted}"
            changes.append(Change(what, (*put, wanted, str(file)), (*put, now, str(file))))
    return changes


def power_mode_changes(wanted: str, root: Path = Path("/")) -> List[Change]:
    """What to change for a Jetson to run in a power mode; nothing where it does.

    Modes are chosen by name, since their numbers differ between boards and releases of Jetson Linux.

    Args:
        wanted: name in ``/etc/nvpmodel.conf``, e.g. ``MAXN``.
        root: of the file system that ``/etc`` is in.

    Raises:
        UserError: this is no Jetson, or it has no such mode.
    """
    try:
        text = (root / _MODES_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(
            f'there is no power mode here to set to "{wanted}": no /{_MODES_FILE}', ["measure without --power-mode"]
        ) from error
    numbers = {name: number for number, name in _MODE.findall(text)}
    if wanted not in numbers:
        raise UserError(f'this board has no power mode "{wanted}"', [f"it has: {', '.join(numbers)}"])
    now = _power_mode()
    if now == wanted:
        return []
    if now not in numbers:
        raise UserError(f'nvpmodel says that the power mode is "{now}", which /{_MODES_FILE} does not have')
    return [
        Change(
            f"power mode from {now} to {wanted}",
            ("nvpmodel", "-m", numbers[wanted]),
            ("nvpmodel", "-m", numbers[now]),
        )
    ]


def _power_mode() -> str:
    """Of this Jetson, by name. Warnings may stand in front of the line; the number on the next one is not looked at."""
    done = _run(("nvpmodel", "-q"))
    found = re.search(r"NV Power Mode:\s*(\S+)", done.stdout)
    if found is None:
        raise UserError(f'"nvpmodel -q" does not tell the power mode: {_complaint(done)}', ["--sudo", "run it as root"])
    return found.group(1)


@contextlib.contextmanager
def held(changes: Sequence[Change], prefix: Tuple[str, ...] = ()) -> Iterator[None]:
    """Makes changes for as long as the block lasts.

    A process of its own puts them back, also when this one is killed: it waits for the end of a pipe.

    Args:
        changes: in the order that they are made in.
        prefix: in front of every command, e.g. `SUDO`.

    Raises:
        UserError: one cannot be made; those before it have been put back.
    """
    if not changes:
        yield
        return
    restore = [shlex.join((*prefix, *change.restore)) for change in reversed(changes)]
    quiet = subprocess.DEVNULL
    guard = subprocess.Popen(
        ["sh", "-c", _GUARD, "guard", *restore],
        stdin=subprocess.PIPE,
        stdout=quiet,  # not ours: whoever waits for the end of our output would wait for the guard
        stderr=quiet,
        start_new_session=True,
    )
    try:
        for change in changes:
            done = _run((*prefix, *change.apply))
            if done.returncode != 0:
                raise UserError(
                    f'cannot set the {change.what}: "{_complaint(done)}"',
                    ["--sudo, where sudo asks for no password", "run as root", "measure without it"],
                )
        yield
    finally:
        if guard.stdin is not None:
            guard.stdin.close()
        guard.wait(_TIMEOUT_S)


def cool_down(
    most_c: float,
    longest_s: float,
    temperature_c: Callable[[], Optional[float]],
    say: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Waits until the board is as cool as every measurement of it shall begin.

    Args:
        most_c: temperature to begin at.
        longest_s: to wait.
        temperature_c: reads it, ``None`` where the board does not tell.
        say: told how it is, every now and then.
        pause: waits some seconds.

    Raises:
        UserError: the board does not tell its temperature.
        Inconclusive: it does not get so cool.
    """
    waited_s = 0.0
    while True:
        now_c = temperature_c()
        if now_c is None:
            raise UserError(
                f'the board does not tell its temperature, and shall start at "{most_c:g}" degrees',
                ["measure without --start-temperature"],
            )
        if now_c <= most_c:
            return
        if waited_s >= longest_s:
            raise Inconclusive(
                f'the board has "{now_c:.1f}" degrees after {waited_s:.0f} s, and shall start at {most_c:g}',
                ["a fan or a heat sink", "--start-temperature, higher", "--cool-down, longer"],
            )
        say(f"{now_c:.1f} degrees, waiting for {most_c:g}")
        pause(_PAUSE_S)
        waited_s += _PAUSE_S


def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A program's end; what a shell says where there is no such program."""
    try:
        return subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,  # nvpmodel asks whether to reboot for some modes; the answer is not yes
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except OSError as error:
        return subprocess.CompletedProcess(argv, 127, "", f"{argv[0]}: {error.strerror}")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 124, "", f"{argv[0]}: no end within {_TIMEOUT_S:g} s")


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"
