"""The board's half of the lease: a program for Python 3.6, which JetPack 4 has, and its standard library.

It is run by `boards.shell.program`.

One file says who has the board; a lock of the kernel is held while it is read and written, so of two contenders one is
first. Time is the board's, counted since it started: a Raspberry Pi has no clock that goes on without power, and its
date jumps when the network sets it. A lease from before a restart has expired, whose connection cannot have lived on.
"""

import contextlib
import fcntl
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Iterator  # noqa: UP035 - Python 3.6 cannot subscript the one of collections.abc

LEASE, LOCK = "lease.json", "lease.lock"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
UPTIME = Path("/proc/uptime")

Json = Any


def take(root: Path, request: Json) -> Json:
    """Takes or renews the lease. The one who has it, where that is somebody else, and is not ``gone``."""
    held = _held(root)
    if held is not None and held["token"] != request["token"] and held["holder"] != request.get("gone"):
        left_s = held["expires_s"] - _now_s()
        until = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time.time() + left_s))
        return {"holder": held["holder"], "until": until, "left_s": left_s}
    lease = {
        "token": request["token"],
        "holder": request["holder"],
        "expires_s": _now_s() + request["seconds"],
        "boot_id": BOOT_ID.read_text(encoding="ascii").strip(),
    }
    beside = root / (LEASE + ".part")
    beside.write_text(json.dumps(lease), encoding="utf-8")
    beside.replace(root / LEASE)
    return None


def release(root: Path, request: Json) -> Json:
    """Gives the lease up, if it is still held by this one."""
    held = _held(root)
    if held is not None and held["token"] == request["token"]:
        (root / LEASE).unlink()


def _held(root: Path) -> Json:
    """The lease that holds now; None where there is none."""
    try:
        lease = json.loads((root / LEASE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:  # the board lost power before the file was on its disk
        return None
    valid = lease["boot_id"] == BOOT_ID.read_text(encoding="ascii").strip() and lease["expires_s"] > _now_s()
    return lease if valid else None


def _now_s() -> float:
    """Since the board started, sleep included."""
    return float(UPTIME.read_text(encoding="ascii").split()[0])


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    with open(root / LOCK, "a", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed, also by a process that dies
        yield


def main(verb: str, request: Json) -> None:
    """Does one thing and prints one line."""
    root = Path(request["root"])
    try:
        with _locked(root):
            said = {"answer": {"take": take, "release": release}[verb](root, request)}
    except OSError as error:
        path = error.filename or os.fspath(root)
        said = {
            "refused": f'cannot write "{path}": {error.strerror}',
            "tries": ["another root in stations.toml that its user owns"],
        }
    sys.stdout.write(json.dumps(said) + "\n")
