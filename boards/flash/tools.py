"""Programs of the system that do the work on file systems; a missing one is named with the package that has it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from splitboard.contract.errors import UserError

_ADMINISTRATORS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Not on every user's PATH, yet what lies there needs no root to work on plain files."""

_PACKAGES = {
    "mcopy": "mtools",
    "mdir": "mtools",
    "mtype": "mtools",
    "debugfs": "e2fsprogs",
    "lsblk": "util-linux",
    "lsusb": "usbutils",
    "sudo": "sudo",
}


def find_tool(name: str) -> str:
    """Path of a program.

    Raises:
        UserError: it is not installed.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_ADMINISTRATORS])
    found = shutil.which(name, path=path)
    if found is None:
        raise UserError(f'"{name}" is not installed', [f"sudo apt install {_PACKAGES[name]}"])
    return found


def run_tool(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """Runs a program with messages in English and hands back what it said; its exit code is the caller's to read.

    Raises:
        UserError: it is not installed.
    """
    said = {**os.environ, "LC_ALL": "C", **(environment or {})}
    command = [find_tool(argv[0]), *argv[1:]]
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, env=said, check=False)
