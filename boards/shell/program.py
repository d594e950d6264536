"""A Python program that runs on the board: one file of ours, given on standard input, that answers in JSON.

The board needs nothing of ours for it. Everything that must be atomic there (locks, links, checksums of many files) is
one such program instead of many commands over the network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boards.shell.shell import RUN_TIMEOUT_S, Shell
from splitboard.contract.errors import UserError

OLDEST_PYTHON = (3, 8)


def run_program(
    shell: Shell, python: str, program: Path, verb: str, request: Mapping[str, Any], timeout_s: float = RUN_TIMEOUT_S
) -> Any:
    """Runs ``main(verb, request)`` of a program on the board.

    Args:
        shell: of the board.
        python: interpreter there.
        program: a file of ours that holds ``main``, which prints one line of JSON: ``{"answer": ...}``, or
            ``{"refused": message, "tries": [...]}``.
        verb: what it shall do.
        request: for it; JSON.
        timeout_s: for all of it.

    Returns:
        The answer.

    Raises:
        UserError: it refused, or the interpreter is missing or before Python 3.8.
        RuntimeError: it failed in a way that nobody foresaw; with the board's traceback.
    """
    source = program.read_text(encoding="utf-8")
    call = f"\n\nmain({verb!r}, json.loads({json.dumps(request)!r}))\n"
    done = shell.run([python, "-I", "-", verb], timeout_s=timeout_s, stdin=(source + call).encode())
    if done.returncode != 0:
        _check_python(shell, python)
        raise RuntimeError(f'{program.name} {verb} on station "{shell.name}":\n{done.stderr}')
    said = json.loads(done.stdout.splitlines()[-1])
    if "refused" in said:
        raise UserError(f'station "{shell.name}" {said["refused"]}', said["tries"])
    return said["answer"]


def _check_python(shell: Shell, python: str) -> None:
    """Refuses an interpreter that is missing or too old to run our programs."""
    done = shell.run([python, "-c", "import sys; print('%d %d' % sys.version_info[:2])"])
    if done.returncode != 0:
        raise _no_python(shell, python)
    version = tuple(int(part) for part in done.stdout.split())
    if version < OLDEST_PYTHON:
        raise UserError(
            f'station "{shell.name}" has Python "{".".join(map(str, version))}" as {python}, at least 3.8 is needed',
            [
                'install a newer one there and name it in stations.toml: python = "/usr/bin/python3.8"',
                "a Jetson with JetPack 4: splitboard trtexec BUNDLE --board STATION",
            ],
        )


def _no_python(shell: Shell, python: str) -> UserError:
    return UserError(
        f'station "{shell.name}" has no working "{python}"',
        ["on the board: sudo apt-get install python3", 'name another in stations.toml: python = "/usr/bin/python3"'],
    )
