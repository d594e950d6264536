"""The kinds of board: one TOML file each, beside this module. A new kind is one file."""

from __future__ import annotations

import difflib
import platform
import sys
from pathlib import Path

from splitboard.contract.board import BoardKind
from splitboard.contract.decode import decode
from splitboard.contract.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOLDER = Path(__file__).with_name("kinds")


def kind_names() -> list[str]:
    """Names of all kinds, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_kind(name: str) -> BoardKind:
    """Reads one kind.

    Raises:
        UserError: there is no such kind; the nearest is named.
    """
    known = kind_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        tries = [f"kinds: {', '.join(known)}"]
        raise UserError(f'unknown board "{name}"', [f'"{near[0]}" is the nearest', *tries] if near else tries)
    path = _FOLDER / f"{name}.toml"
    return decode(BoardKind, {"name": name, **tomllib.loads(path.read_text(encoding="utf-8"))}, str(path))


def require_precision(kind: BoardKind, precision: str) -> None:
    """Refuses a precision that the kind does not run, with the reason.

    Raises:
        UserError: it does not.
    """
    if precision in kind.precisions:
        return
    tries = [f"{kind.name} runs: {', '.join(kind.precisions)}"]
    if precision in kind.refused:
        raise UserError(f'"{kind.name}" does not run "{precision}": {kind.refused[precision]}', tries)
    raise UserError(f'unknown precision "{precision}"', tries)


def this_machine() -> BoardKind:
    """The generic kind of the machine that runs this.

    Raises:
        UserError: its architecture has no generic kind.
    """
    machine = platform.machine()
    names = {"x86_64": "linux-x86-64", "aarch64": "linux-arm64"}
    if machine not in names:
        raise UserError(f'no generic kind of board for the architecture "{machine}"', ["name a kind with --board"])
    return load_kind(names[machine])
