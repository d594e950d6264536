"""The kinds of board: one TOML file each, beside this module. A new kind is one file."""

from __future__ import annotations

import difflib
import platform
import sys
from pathlib import Path

from splitboard.contract.board import BoardKind, System
from splitboard.contract.decode import decode
from splitboard.contract.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOLDER = Path(__file__).with_name("kinds")

_GENERIC = {"x86_64": "linux-x86-64", "aarch64": "linux-arm64"}
"""The generic kind by what ``uname -m`` prints."""

_OLDEST_PYTHON = (3, 8)
"""That the edge runtime runs on. Older releases have ``trtexec`` alone, which is given no INT8."""


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
    """Refuses to build what the kind does not run, with the reason.

    Raises:
        UserError: it is one of these.
    """
    tries = [f"{kind.name} runs: {', '.join(kind.precisions)}"]
    if precision in kind.refused:
        raise UserError(f'"{kind.name}" does not run "{precision}": {kind.refused[precision]}', tries)
    if precision not in kind.precisions:
        raise UserError(f'unknown precision "{precision}"', tries)


def systems_for(kind: BoardKind, precision: str) -> tuple[System, ...]:
    """The kind's systems that a bundle of this precision is for, the newest first."""
    if kind.format != "onnx" or precision != "int8":
        return kind.systems
    return tuple(
        system for system in kind.systems if tuple(int(part) for part in system.python.split(".")) >= _OLDEST_PYTHON
    )


def generic_kind(machine: str) -> BoardKind | None:
    """The generic kind of an architecture as ``uname -m`` prints it; ``None`` where there is none."""
    return load_kind(_GENERIC[machine]) if machine in _GENERIC else None


def this_machine() -> BoardKind:
    """The generic kind of the machine that runs this.

    Raises:
        UserError: its architecture has no generic kind.
    """
    kind = generic_kind(platform.machine())
    if kind is None:
        raise UserError(
            f'no generic kind of board for the architecture "{platform.machine()}"', ["name a kind with --board"]
        )
    return kind


def runs_bundles_of(kind: BoardKind, built_for: str) -> bool:
    """Whether boards of a kind run bundles that were built for ``built_for``: their own, and their generic kind's."""
    generic = generic_kind(kind.machine)
    return built_for == kind.name or (generic is not None and built_for == generic.name)
