"""Which kind a board is of, from its device tree. Nothing is guessed in silence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from boards.kinds import generic_kind, kind_names, load_kind
from boards.sections import read_sections
from boards.shell.shell import Shell
from splitboard.contract.board import BoardKind
from splitboard.contract.errors import UserError

_TIMEOUT_S = 30.0

ROOT = PurePosixPath("/")
"""Of a board's files."""

IDENTITY = {
    "machine": "uname -m",
    # Strings in a device tree end in NUL.
    "model": "tr '\\0' '\\n' <\"$1/proc/device-tree/model\"",
    "compatible": "tr '\\0' '\\n' <\"$1/proc/device-tree/compatible\"",
    "tegra": 'sed -n 1p "$1/etc/nv_tegra_release"',
}
"""Readings that name the kind; ``$1`` is the folder that the board's files are in, without a slash at its end."""

_RELEASE = re.compile(r"R(\d+) \(release\), REVISION: ([\d.]+)")
_VIRTUAL = ("linux,dummy-virt", "qemu,")
"""In ``compatible`` of QEMU's machine ``virt``, and of other virtual ones."""


@dataclass(frozen=True)
class Detected:
    """What a board is.

    Attributes:
        kind: name of its kind.
        model: as its device tree says; empty where it has none.
        compatible: the same.
        machine: as ``uname -m`` prints it.
        l4t: release of Jetson Linux, e.g. ``36.4.3``; ``None`` where it is none.
        notes: why it is that kind where the board itself does not say so, and what does not fit.
    """

    kind: str
    model: str
    compatible: tuple[str, ...]
    machine: str
    l4t: str | None
    notes: tuple[str, ...]


def detect(shell: Shell, root: PurePosixPath = ROOT) -> Detected:
    """Reads a board's device tree and names its kind.

    Args:
        shell: to the board.
        root: of the board's files.

    Raises:
        UserError: there is no kind for it.
    """
    return identify(read_sections(shell, IDENTITY, [root_argument(root)], timeout_s=_TIMEOUT_S))


def is_virtual(shell: Shell) -> bool:
    """Whether a board's device tree is that of a virtual machine, whose times mean nothing."""
    said = shell.run(["sh", "-c", IDENTITY["compatible"], "sh", root_argument(ROOT)], timeout_s=_TIMEOUT_S)
    return _is_virtual(said.stdout.splitlines())


def _is_virtual(compatible: Iterable[str]) -> bool:
    return any(one.startswith(_VIRTUAL) for one in compatible)


def root_argument(root: PurePosixPath) -> str:
    """The root as the readings take it."""
    return str(root).rstrip("/")


def identify(sections: Mapping[str, str]) -> Detected:
    """The kind that `IDENTITY`'s sections are of.

    Raises:
        UserError: there is no kind for it.
    """
    machine, model = sections["machine"].strip(), sections["model"].strip()
    compatible = tuple(line for line in sections["compatible"].splitlines() if line)
    kinds = [load_kind(name) for name in kind_names()]
    by_word = next((kind for kind in kinds if _has_word(kind, compatible)), None)
    by_model = next((kind for kind in kinds if model.startswith(kind.device_tree.model)), None)
    kind = by_word or by_model or generic_kind(machine)
    if kind is None:
        raise UserError(
            f'there is no kind of board for the architecture "{machine}"' + (f" ({model})" if model else ""),
            ["a 64-bit system: uname -m must say aarch64 or x86_64", "splitboard boards"],
        )
    notes = _notes(kind, by_word, by_model, model, machine)
    if _is_virtual(compatible):
        notes.append("it is a virtual machine: its times and joules mean nothing")
    return Detected(kind.name, model, compatible, machine, _l4t(sections["tegra"]), tuple(notes))


def _notes(
    kind: BoardKind, by_word: BoardKind | None, by_model: BoardKind | None, model: str, machine: str
) -> list[str]:
    notes = []
    if by_word is None and by_model is not None:
        notes.append(f'known by its model "{model}" alone')
    elif model and by_word is None:
        notes.append(f'its device tree says "{model}", which no kind is known by: the generic kind of {machine}')
    elif by_word is None and machine != "x86_64":  # a PC has none
        notes.append(f"it has no device tree: the generic kind of {machine}")
    elif by_word is not None and by_model not in (None, by_word):
        notes.append(f'its model says "{model}" ({by_model.name}); the part number decides')
    if machine != kind.machine:
        notes.append(f'its system is 32-bit or of another architecture: "{machine}", not {kind.machine}')
    return notes


def _has_word(kind: BoardKind, compatible: tuple[str, ...]) -> bool:
    """Whether a word of the kind is one of the device tree's, or the beginning of one up to a hyphen."""
    words = {word for one in compatible for word in re.split(r"[,+]", one)}
    return any(word == known or word.startswith(f"{known}-") for known in kind.device_tree.compatible for word in words)


def _l4t(first_line: str) -> str | None:
    """``# R36 (release), REVISION: 4.3, ...`` is 36.4.3."""
    match = _RELEASE.search(first_line)
    return None if match is None else f"{match[1]}.{match[2]}"
