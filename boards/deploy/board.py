"""What a deploy must know of a board before it sends anything, and what it refuses then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from boards.detect import detect
from boards.kinds import load_kind, runs_bundles_of
from boards.shell.program import run_program
from boards.shell.shell import Shell
from boards.stations import Station
from splitboard.contract.board import BoardKind
from splitboard.contract.decode import decode
from splitboard.contract.errors import UserError

ON_BOARD = Path(__file__).with_name("on_board.py")

MODULES = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
    "tensorrt": "tensorrt",
}
"""What to import of a runtime that a kind names."""

CUDA_MODULES = ("pycuda.driver", "cuda.bindings.runtime")
"""Bindings of CUDA, the one first that the runtime takes first."""

_PROBE_TIMEOUT_S = 180.0
"""Imports from a slow card, one after the other."""


@dataclass(frozen=True)
class BoardFacts:
    """A board as its interpreter sees it.

    Attributes:
        root: of the station, absolute.
        python: path of the interpreter.
        version: of it, major and minor.
        machine: that the interpreter is built for, as ``uname -m`` names it: ``armv7l`` of a 32-bit one also where the
            kernel is a 64-bit one.
        glibc: of the C library, major and minor; ``None`` with another.
        modules: version by module that was looked for; ``None`` where it does not load.
        free_bytes: on the disk that ``root`` is on.
    """

    root: str
    python: str
    version: tuple[int, ...]
    machine: str
    glibc: tuple[int, ...] | None
    modules: dict[str, str | None]
    free_bytes: int

    def has(self, runtime: str) -> bool:
        """Whether a runtime can be used as it is: it loads, and with the numpy that is there."""
        numpy = self.modules["numpy"]
        if numpy is None or self.modules.get(MODULES[runtime]) is None:
            return False
        return runtime != "tflite-runtime" or int(numpy.split(".")[0]) < 2  # built for numpy 1; with 2 it dies


def probe(shell: Shell, station: Station, runtimes: tuple[str, ...]) -> BoardFacts:
    """Looks at a board; nothing is written there.

    Args:
        shell: of it.
        station: names its root and its interpreter.
        runtimes: that a kind names.

    Raises:
        UserError: it has no interpreter, or one before Python 3.8.
    """
    python = python_of(station)
    modules = ["numpy", *(MODULES[name] for name in runtimes), *(CUDA_MODULES if "tensorrt" in runtimes else ())]
    request = {"root": station.root, "modules": modules}
    said = run_program(shell, python, ON_BOARD, "probe", request, _PROBE_TIMEOUT_S)
    return decode(BoardFacts, said, f'station "{station.name}"')


def python_of(station: Station) -> str:
    """The interpreter to start on a station."""
    return station.python or "python3"


def check_kind(folder: Path, board: str, shell: Shell, station: Station) -> BoardKind:
    """The station's kind, which must run the bundle: one for it, or for the generic kind of the same processor.

    Args:
        folder: the bundle, for the message.
        board: the kind that it is for.
        shell: of the board; it is asked for its kind where the station leaves it open.
        station: the board.

    Raises:
        UserError: the bundle is for another kind.
    """
    kind = load_kind(detect(shell).kind if station.kind is None else station.kind)
    if runs_bundles_of(kind, board):
        return kind
    raise UserError(
        f'"{folder}" is for "{board}", station "{station.name}" is of the kind "{kind.name}"',
        [f"splitboard build MODEL --board {kind.name}", 'another kind = "..." in stations.toml, if it is wrong'],
    )


def check_machine(kind: BoardKind, facts: BoardFacts, station: Station) -> None:
    """Refuses an interpreter for another processor; a 32-bit one is fine where a runtime has wheels for it.

    Raises:
        UserError: it is for another.
    """
    small = facts.machine == "armv7l" and kind.machine == "aarch64" and "tflite-runtime" in kind.runtime
    if facts.machine == kind.machine or small:
        return
    raise UserError(
        f'the interpreter "{facts.python}" of station "{station.name}" is built for "{facts.machine}", '
        f"{kind.name} is {kind.machine}",
        ["write a 64-bit system onto the board", "build for what it is: splitboard boards"],
    )


def check_space(station: Station, facts: BoardFacts, needed_bytes: int, spare_bytes: int) -> None:
    """Refuses a disk that would be full.

    Raises:
        UserError: it would.
    """
    if facts.free_bytes >= needed_bytes + spare_bytes:
        return
    raise UserError(
        f'station "{station.name}" has {facts.free_bytes / 1e6:.1f} MB free under "{facts.root}", '
        f"{(needed_bytes + spare_bytes) / 1e6:.1f} MB are needed",
        ["look what takes it: df -h, on the board", "give the station another root in stations.toml"],
    )


def sizes(files: Mapping[str, Path]) -> int:
    """Bytes of files in all."""
    return sum(path.stat().st_size for path in files.values())
