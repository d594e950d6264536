"""Many small readings in one round trip: a POSIX shell script that prints each under a heading."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from boards.shell.shell import Shell
from splitboard.contract.errors import UserError

_MARK = "@@splitboard "
_HEADING = re.compile(rf"^{_MARK}(\w+)$", re.MULTILINE)
_END = "end"

PRELUDE = """\
LC_ALL=C
export LC_ALL
PATH=$PATH:/usr/sbin:/sbin
begin() { printf '\\n%s%s\\n' '@@splitboard ' "$1"; }
limited() { if command -v timeout >/dev/null; then timeout 5 "$@"; else "$@"; fi; }
exec </dev/null
"""
"""Every script starts with it; no program of the script may read on from the script itself."""


def read_sections(
    shell: Shell, readings: Mapping[str, str], arguments: Sequence[str], *, timeout_s: float
) -> dict[str, str]:
    """Runs readings on a board, all in one.

    Args:
        shell: to the board.
        readings: shell commands by section; what they complain is dropped.
        arguments: of the script: ``$1`` and so on.
        timeout_s: for all of them.

    Returns:
        What each printed, without the line breaks around it.

    Raises:
        UserError: the board has no POSIX shell, or did not come to the script's end.
    """
    # The whole script is one function: a shell that reads it from its standard input has read it before it runs.
    body = "\n".join(f"begin {name}\n{command}" for name, command in readings.items())
    script = f'main() {{\n{PRELUDE}{body}\nbegin {_END}\n}}\nmain "$@" 2>/dev/null\n'
    done = shell.run(["sh", "-s", "--", *arguments], stdin=script.encode(), timeout_s=timeout_s)
    parts = _HEADING.split(done.stdout)
    found = {name: text.strip("\n") for name, text in zip(parts[1::2], parts[2::2], strict=True)}
    if _END not in found:
        complaint = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise UserError(
            f'station "{shell.name}" did not run the reading script: {complaint[:200]}',
            ["is it a Linux system with a POSIX shell? log in with ssh and run: sh -c 'uname -a'"],
        )
    return found
